from __future__ import annotations

from pathlib import Path

import pytest

from gpt2core.errors import UserError
from gpt2core.learn import SimpleTokenizerV1, SimpleTokenizerV2, build_vocab, split_words

TEXT = 'The cat sat. "Well," it said, "isn\'t it (nearly) tea-time -- or not?"'


@pytest.fixture
def verdict(mirror: Path) -> str:
    return (mirror / "the-verdict" / "the-verdict.txt").read_text(encoding="utf-8")


def test_the_verdict_has_4690_words_1130_of_them_distinct(verdict: str) -> None:
    words = split_words(verdict)
    assert len(words) == 4690
    assert len(build_vocab(words)) == 1130


def test_words_come_back_whatever_the_text(verdict: str) -> None:
    for text in (TEXT, verdict):
        tokenizer = SimpleTokenizerV1(build_vocab(split_words(text)))
        ids = tokenizer.encode(text)
        assert [tokenizer.int_to_str[i] for i in ids] == split_words(text)
        assert sorted(set(ids)) == list(range(len(tokenizer.str_to_int)))


def test_a_plain_sentence_comes_back_whole() -> None:
    text = "The cat sat, then it said: no!"
    tokenizer = SimpleTokenizerV1(build_vocab(split_words(text)))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_unknown_word_is_an_error_without_unk_and_a_token_with_it() -> None:
    vocab = build_vocab(split_words("the cat sat"), special=["<|endoftext|>", "<|unk|>"])
    with pytest.raises(UserError, match="'dog'"):
        SimpleTokenizerV1(vocab).encode("the dog sat")
    v2 = SimpleTokenizerV2(vocab)
    joined = "the dog sat <|endoftext|> the cat"
    assert v2.decode(v2.encode(joined)) == "the <|unk|> sat <|endoftext|> the cat"


def test_a_vocabulary_without_unk_is_refused() -> None:
    with pytest.raises(UserError, match="has no <|unk|>"):
        SimpleTokenizerV2({"cat": 0})
