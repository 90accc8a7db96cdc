"""Step 2: byte-pair encoding. The tokens are compared with those of tiktoken, which OpenAI wrote."""

import random
from collections import Counter

import tiktoken
from gpt import count_pairs, decode, encode, merge, train_bpe

TEXT = "the lamp on the hill, the lamp in the hall, and the old lamp seller of the north — naïve, 12 coins 🙂. " * 3


def test_pairs_are_counted_with_overlaps():
    assert Counter(count_pairs([1, 1, 1, 2])) == {(1, 1): 2, (1, 2): 1}


def test_a_merge_replaces_from_the_left():
    assert merge([1, 2, 1, 2, 2], (1, 2), 9) == [9, 9, 2]
    assert merge([1, 1, 1], (1, 1), 9) == [9, 1]
    assert merge([1, 2], (2, 1), 9) == [1, 2]


def test_the_most_frequent_pair_is_merged_first_and_of_equals_the_smallest():
    a, b = 97, 98
    assert train_bpe("aaabdaaabac", 3) == [(a, a), (a, b), (256, 257)]
    assert encode("aaabdaaabac", train_bpe("aaabdaaabac", 3)) == [258, 100, 258, a, 99]


def test_training_ends_when_no_pair_is_left():
    assert train_bpe("abab", 10) == [(97, 98), (256, 256)]


def test_tokens_are_tiktokens():
    merges = train_bpe(TEXT, 60)
    spelled = {number: bytes([number]) for number in range(256)}
    for number, (left, right) in enumerate(merges):
        spelled[256 + number] = spelled[left] + spelled[right]
    ranks = {token: number for number, token in spelled.items()}
    theirs = tiktoken.Encoding("theirs", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
    random.seed(0)
    for text in (TEXT, "a new text, naïvely 🙂", "".join(random.choices("the lamp", k=300))):
        assert encode(text, merges) == theirs.encode(text)
        assert decode(encode(text, merges), merges) == text


def test_half_a_character_is_shown_as_a_replacement():
    assert decode([0xF0, 0x9F], []) == "\ufffd"
