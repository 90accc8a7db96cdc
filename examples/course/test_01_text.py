"""Step 1: a text as words, and words as numbers."""

from gpt import build_vocab, decode_words, encode_words, split_words

TEXT = "The cat sat, then it ran. The dog sat!"


def test_words_and_marks_without_white_space():
    assert split_words("The cat sat, then it ran.") == ["The", "cat", "sat", ",", "then", "it", "ran", "."]
    assert split_words("  two\n\nlines\t") == ["two", "lines"]


def test_a_number_for_each_distinct_word_in_alphabetical_order():
    assert build_vocab(["the", "cat", "the", "ant"]) == {"ant": 0, "cat": 1, "the": 2}


def test_ids_and_back():
    vocab = build_vocab(split_words(TEXT))
    ids = encode_words(TEXT, vocab)
    assert len(ids) == 12 and ids[2] == ids[10]  # "sat" twice
    assert decode_words(ids, vocab) == "The cat sat , then it ran . The dog sat !"
