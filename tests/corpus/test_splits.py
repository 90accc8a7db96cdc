"""Counting, splitting and freeing a corpus of repetitions."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path

import pytest

from gpt2core.corpus import documents
from gpt2core.corpus.splits import Corpus
from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer
from gpt2core.tokenizer.train import train_bpe
from tests.corpus.corpora import BOOK, folder_with, joined

SEPARATOR = f"\n{END_OF_TEXT}\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([BOOK], 300)


@pytest.fixture(params=[300, 8 << 20], ids=["many parts", "one part"])
def _parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", request.param)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("val_fraction", [0.1, 0.3, 0.49])
def test_a_book_is_split_at_its_end_without_changing_a_token(
    tmp_path: Path, tokenizer: Tokenizer, val_fraction: float
) -> None:
    corpus = Corpus(folder_with(tmp_path, a=BOOK, b=BOOK[:5000]), val_fraction, seed=1)
    train, val = (joined(corpus.pieces(split)) for split in ("train", "val"))
    assert len(train) == len(val) == 2
    for text, head, tail in zip((BOOK, BOOK[:5000]), train, val, strict=True):
        assert head + tail == text
        assert abs(len(tail) - val_fraction * len(text)) < 30
        assert tokenizer.encode(head) + tokenizer.encode(tail) == tokenizer.encode(text)


@pytest.mark.usefixtures("_parts")
def test_many_documents_are_split_whole_by_seed(tmp_path: Path) -> None:
    tales = [f"tale number {i}" for i in range(200)]
    folder = folder_with(tmp_path, a=SEPARATOR.join(tales))
    train, val = (joined(Corpus(folder, 0.1, seed=1).pieces(s)) for s in ("train", "val"))
    assert len(val) == 20
    assert sorted(train + val) == sorted(tales)
    assert joined(Corpus(folder, 0.1, seed=1).pieces("val")) == val
    assert joined(Corpus(folder, 0.1, seed=2).pieces("val")) != val


def test_held_out_texts_of_the_source_are_the_validation(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a="train text")
    (folder / "val").mkdir()
    (folder / "val" / "b.txt").write_text("held out")
    corpus = Corpus(folder, 0.4, seed=1)
    assert joined(corpus.pieces("train")) == ["train text"]
    assert joined(corpus.pieces("val")) == ["held out"]


@pytest.mark.usefixtures("_parts")
def test_of_equal_documents_the_first_is_kept(tmp_path: Path) -> None:
    tales = [f"tale number {i % 70}" for i in range(100)]
    folder = folder_with(tmp_path, a=SEPARATOR.join([*tales, BOOK]), b=SEPARATOR.join([BOOK, "tale number 3 ", *tales]))
    kept = Corpus(folder, 0.1, seed=1, drop_duplicates=True)
    train, val = (joined(kept.pieces(split)) for split in ("train", "val"))
    assert kept.n_dropped == 30 + 1 + 100
    assert sorted(train + val) == sorted({*tales, BOOK, "tale number 3 "})
    assert len(val) == round(0.1 * 72)
    everything = Corpus(folder, 0.1, seed=1)
    assert sum(len(joined(everything.pieces(split))) for split in ("train", "val")) == 203


def test_what_is_held_out_is_dropped_from_the_training(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a=SEPARATOR.join(["one", "two", "three"]))
    (folder / "val").mkdir()
    (folder / "val" / "b.jsonl").write_text(json.dumps({"text": "two"}))
    corpus = Corpus(folder, 0.1, seed=1, drop_duplicates=True)
    assert joined(corpus.pieces("train")) == ["one", "three"]
    assert joined(corpus.pieces("val")) == ["two"]


def test_few_documents_after_dropping_are_each_split(tmp_path: Path) -> None:
    corpus = Corpus(folder_with(tmp_path, a=SEPARATOR.join([BOOK] * 30)), 0.1, seed=1, drop_duplicates=True)
    train, val = (joined(corpus.pieces(split)) for split in ("train", "val"))
    assert len(train) == len(val) == 1
    assert train[0] + val[0] == BOOK


def test_bad_corpora_are_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a="")
    with pytest.raises(UserError, match="the corpus is empty"):
        Corpus(folder, 0.1, seed=1)
    (folder / "train" / "a.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"a\.txt: byte 3 is not UTF-8"):
        Corpus(folder, 0.1, seed=1)
    with pytest.raises(UserError, match=r"no \.txt, \.jsonl .* file in this folder; run the stage download-data"):
        Corpus(tmp_path / "absent", 0.1, seed=1)


@pytest.mark.parametrize(
    "text",
    [
        "　　亁倊仱凶冘凇匶儉侭什凧。\n" * 200,
        "亁倊仱凶冘凇匶儉侭什凧" * 300,
        "ACGTTGCA" * 1000,
        "e\u0301" * 3000,
    ],
    ids=["Chinese paragraphs", "Chinese", "DNA", "combining accents"],
)
def test_a_text_without_spaces_between_words_is_split(tmp_path: Path, text: str) -> None:
    corpus = Corpus(folder_with(tmp_path, a=text), 0.1, seed=1)
    (train,), (val,) = (joined(corpus.pieces(split)) for split in ("train", "val"))
    assert train + val == text.strip("\n") or train + val == text
    assert abs(len(val) - 0.1 * len(text)) < 250
    assert not unicodedata.combining(val[0])


def test_a_text_too_large_to_cut_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BLOCK_CHARS", 1000)
    monkeypatch.setattr(documents, "MAX_UNCUT_CHARS", 5000)
    with pytest.raises(UserError, match="a.txt: more than 5,000 characters without a space"):
        Corpus(folder_with(tmp_path, a="ACGT" * 2000), 0.1, seed=1)


def test_a_line_past_its_limit_is_refused_before_it_is_unfolded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1000)
    folder = tmp_path / "train"
    folder.mkdir()
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "short"}\n{"text": "' + "x" * 10_000 + '"}\n')
    with pytest.raises(UserError, match="a.jsonl.gz, row 2: longer than 1,000 bytes"):
        Corpus(tmp_path, 0.1, seed=1)


def test_the_companion_files_of_a_mac_are_skipped(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a=BOOK)
    (folder / "train" / "._a.txt").write_bytes(b"\0\5\x16\7Mac OS X")
    assert Corpus(folder, 0.1, seed=1).n_documents == 1
