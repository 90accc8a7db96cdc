from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer, byte_pair, load_tokenizer, read_bpe
from gpt2core.tokenizer.byte_pair import WORD_PATTERN, printable_bytes
from gpt2core.tokenizer.train import train_bpe, train_char

TEXT = (
    "The lantern was at the mill. Mira said that the lantern was hers, and she didn't lie: it's hers.\n"
    "Where was the mill? The mill was by the river, beyond the third bridge, 12 miles from here.\n\n"
    "  “Ünïcödé”, naïve café 你好 🙂 end\n"
) * 3


def slow_bpe(text: str, vocab_size: int) -> list[tuple[bytes, bytes]]:
    """Byte-pair encoding as it is told: count all pairs anew in every round, take the best, ties to the lower ids."""
    order = {byte: i for i, byte in enumerate(printable_bytes())}
    tokens = [bytes([byte]) for byte in printable_bytes()]
    words = Counter(regex.findall(WORD_PATTERN, text))
    spelled = {word: [order[byte] for byte in word.encode()] for word in words}
    merges = []
    while len(tokens) < vocab_size - 1:
        counts: Counter[tuple[int, int]] = Counter()
        for word, ids in spelled.items():
            for pair in zip(ids, ids[1:], strict=False):
                counts[pair] += words[word]
        pair = min(counts, key=lambda p: (-counts[p], p))
        merges.append((tokens[pair[0]], tokens[pair[1]]))
        for ids in spelled.values():
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == pair:
                    ids[i : i + 2] = [len(tokens)]
                i += 1
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return merges


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([TEXT], 330)


def test_training_learns_what_the_textbook_algorithm_learns(bpe: Tokenizer) -> None:
    assert bpe.merges == slow_bpe(TEXT, 330)
    assert bpe.vocab_size == 330
    assert bpe.eot_id == 329


def test_the_result_does_not_depend_on_how_the_corpus_is_cut(bpe: Tokenizer) -> None:
    assert train_bpe(TEXT.splitlines(keepends=True) + [""], 330).merges[:20] == bpe.merges[:20]


def test_too_small_a_corpus_is_refused() -> None:
    with pytest.raises(UserError, match="vocab_size: 300 is more than this corpus gives"):
        train_bpe(["aaab"], 300)


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = _cached_bpe()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot_id not in ids


_CACHE: list[Tokenizer] = []


def _cached_bpe() -> Tokenizer:
    if not _CACHE:
        _CACHE.append(train_bpe([TEXT], 330))
    return _CACHE[0]


def test_end_of_text_is_special_only_when_asked(bpe: Tokenizer) -> None:
    assert bpe.eot_id not in bpe.encode(f"a{END_OF_TEXT}b")
    assert bpe.encode(f"a{END_OF_TEXT}b", allow_special=True) == [*bpe.encode("a"), bpe.eot_id, *bpe.encode("b")]


def test_a_reloaded_tokenizer_encodes_alike(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.ranks, again.merges, again.eot_id) == (bpe.ranks, bpe.merges, bpe.eot_id)
    assert again.encode(TEXT) == bpe.encode(TEXT)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_transformers_encodes_alike(kind: str, bpe: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = bpe if kind == "bpe" else train_char([TEXT])
    tokenizer.save(tmp_path, model_max_length=4096)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT)
    assert theirs.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == theirs.pad_token_id == tokenizer.eot_id


def test_characters() -> None:
    tokenizer = train_char(["abba", "cé你🙂"])
    assert tokenizer.encode("abc") == [0, 1, 2]
    text = "🙂你éab"
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(UserError, match="'x' is not one of them"):
        tokenizer.encode("abx")


def test_gpt2s_own(mirror: Path) -> None:
    folder = mirror / "gpt2-bpe"
    tokenizer = read_bpe(folder / "encoder.json", folder / "vocab.bpe")
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    theirs = tiktoken.Encoding("gpt2", pat_str=WORD_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})
    verdict = (mirror / "the-verdict" / "the-verdict.txt").read_text()
    assert tokenizer.vocab_size == 50257
    assert tokenizer.encode(verdict) == theirs.encode_ordinary(verdict)
    assert len(tokenizer.encode(verdict)) == 5145
    assert tokenizer.encode("Hello, I am") == [15496, 11, 314, 716]  # OpenAI's ids


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ("[]", "", "must be a JSON object"),
        ('{"a": 0}', "", "endoftext"),
        ('{"a": 0, "<|endoftext|>": 2}', "", "ids must be 0 to 1"),
        ('{" ": 0, "<|endoftext|>": 1}', "", "no character of GPT-2's byte alphabet"),
        ('{"a": 0, "<|endoftext|>": 1}', "#version: 0.2\na b\n", "line 2"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, vocab: str, merges: str, message: str) -> None:
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def spaced() -> Tokenizer:
    """A tokenizer with tokens of several white spaces."""
    return train_bpe([TEXT, "a" + " " * 500 + "b" + "\n" * 300 + "c" + " \n" * 200 + "\u3000" * 100], 400)


@pytest.mark.parametrize("space", [" ", "\n", "\u3000", " \n"])
@pytest.mark.parametrize("text", ["{}", "a{}b", "{}b", "a{}", "a{} b{}c<|endoftext|>{}d{}<|endoftext|>"])
def test_a_long_run_of_white_space_is_cut_as_tiktoken_does(
    spaced: Tokenizer, text: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = text.format(*[space * 300] * 4)
    expected = spaced.encode(whole), spaced.encode(whole, allow_special=True)
    monkeypatch.setattr(byte_pair, "LONG_RUN_CHARS", 100)
    monkeypatch.setattr(byte_pair, "LONG_RUN", regex.compile(r"\p{White_Space}{100,}"))
    assert (spaced.encode(whole), spaced.encode(whole, allow_special=True)) == expected
    assert any(len(token) > 2 and token.isspace() for token in spaced.ranks)


def test_a_million_white_spaces_are_encoded(spaced: Tokenizer) -> None:
    text = "a" + " " * 1_100_000 + "b"
    assert spaced.decode(spaced.encode(text)) == text
