from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpt2core.config import Tokenizer as TokenizerParams
from gpt2core.data import corpus as corpus_module
from gpt2core.data.corpus import Corpus, read_pieces
from gpt2core.data.shards import HEADER, documents, open_shard, write_shard
from gpt2core.data.tokenize import tokenize
from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer
from gpt2core.tokenizer.train import train_bpe

BOOK = "".join(f"Chapter {i}.\n\nIt was the {i}th day,  and nobody's lantern burned.\n" for i in range(400))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([BOOK], 300)


def folder_with(tmp_path: Path, **texts: str) -> Path:
    (tmp_path / "train").mkdir()
    for name, text in texts.items():
        (tmp_path / "train" / f"{name}.txt").write_text(text)
    return tmp_path


def joined(pieces: list) -> list[str]:
    """The documents that pieces make up."""
    out, open_document = [], ""
    for text, ends in pieces:
        open_document += text
        if ends:
            out.append(open_document)
            open_document = ""
    return out + ([open_document] if open_document else [])


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_documents_are_the_same_however_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, block: int
) -> None:
    monkeypatch.setattr(corpus_module, "BLOCK_CHARS", block)
    folder = folder_with(tmp_path, a=f"one\n{END_OF_TEXT}\ntwo{END_OF_TEXT}", b=BOOK)
    pieces = list(read_pieces(folder / "train"))
    assert joined(pieces) == ["one", "two", BOOK]
    ids = [i for piece in pieces if piece.text not in ("one", "two") for i in tokenizer.encode(piece.text)]
    assert ids == tokenizer.encode(BOOK), "a piece ends inside a token"


def test_a_book_is_split_at_its_end_without_changing_a_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    corpus = Corpus(folder_with(tmp_path, a=BOOK), 0.1, seed=1)
    train, val = (joined(list(corpus.pieces(split))) for split in ("train", "val"))
    assert train[0] + val[0] == BOOK
    assert 0.09 < len(val[0]) / len(BOOK) < 0.11
    assert tokenizer.encode(train[0]) + tokenizer.encode(val[0]) == tokenizer.encode(BOOK)


def test_many_documents_are_split_whole_by_seed(tmp_path: Path) -> None:
    tales = [f"tale number {i}" for i in range(200)]
    folder = folder_with(tmp_path, a=f"\n{END_OF_TEXT}\n".join(tales))
    train, val = (joined(list(Corpus(folder, 0.1, seed=1).pieces(s))) for s in ("train", "val"))
    assert len(val) == 20
    assert sorted(train + val) == sorted(tales)
    assert joined(list(Corpus(folder, 0.1, seed=1).pieces("val"))) == val
    assert joined(list(Corpus(folder, 0.1, seed=2).pieces("val"))) != val


def test_held_out_texts_of_the_source_are_the_validation(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a="train text")
    (folder / "val").mkdir()
    (folder / "val" / "b.txt").write_text("held out")
    corpus = Corpus(folder, 0.4, seed=1)
    assert joined(list(corpus.pieces("train"))) == ["train text"]
    assert joined(list(corpus.pieces("val"))) == ["held out"]


def test_bad_corpora_are_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a="")
    with pytest.raises(UserError, match="the corpus is empty"):
        Corpus(folder, 0.1, seed=1)
    (folder / "train" / "a.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8"):
        Corpus(folder, 0.1, seed=1)
    with pytest.raises(UserError, match="no .txt file"):
        Corpus(tmp_path / "absent", 0.1, seed=1)


def test_a_shard_holds_what_was_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = folder_with(tmp_path, a=f"one two{END_OF_TEXT}thrée")
    shard = write_shard(tmp_path / "x.bin", read_pieces(folder / "train"), tokenizer)
    expected = [*tokenizer.encode("one two"), tokenizer.eot_id, *tokenizer.encode("thrée"), tokenizer.eot_id]
    assert shard.tokens.tolist() == expected
    assert (shard.n_documents, shard.n_bytes, shard.vocab_size) == (2, 7 + 6, 300)
    assert isinstance(shard.tokens, np.memmap)
    assert shard.tokens.dtype == np.uint16
    assert [tokenizer.decode(d.tolist()) for d in documents(shard, tokenizer.eot_id)] == ["one two", "thrée"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "damaged: .* where the header promises"),
        (lambda data: data + b"x", "damaged"),
        (lambda data: data[:10], "not a token shard"),
        (lambda data: b"PK" + data[2:], "not a token shard"),
        (lambda data: data[:8] + b"\x09" + data[9:], "version 9"),
        (lambda data: HEADER.pack(b"gpt2toks", 1, 2, 300, 0, 0, 0), "holds no tokens"),
    ],
)
def test_damaged_shards_are_refused(tmp_path: Path, tokenizer: Tokenizer, damage, message: str) -> None:
    path = tmp_path / "x.bin"
    write_shard(path, read_pieces(folder_with(tmp_path, a="one two") / "train"), tokenizer)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        open_shard(path)
    assert "dvc repro --force tokenize" in str(error.value)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, tokenizer: Tokenizer) -> None:
    import tracemalloc

    def peak_bytes(repeats: int) -> int:
        folder = tmp_path / str(repeats)
        (folder / "train").mkdir(parents=True)
        (folder / "train" / "a.txt").write_text(BOOK * repeats)
        tracemalloc.start()
        write_shard(folder / "x.bin", read_pieces(folder / "train"), tokenizer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    small, large = peak_bytes(100), peak_bytes(400)  # 2.5 and 10 MB, in pieces of 1 MB
    assert large < 1.3 * small


def test_the_verdict(tmp_path: Path, mirror: Path) -> None:
    """5,145 GPT-2 tokens, as everybody counts them, and one end of text a split."""
    raw = tmp_path / "raw"
    (raw / "corpus" / "train").mkdir(parents=True)
    (raw / "corpus" / "train" / "v.txt").write_bytes((mirror / "the-verdict" / "the-verdict.txt").read_bytes())
    (raw / "corpus" / "gpt2-bpe").symlink_to(mirror / "gpt2-bpe")
    metrics = tokenize(TokenizerParams(kind="gpt2", vocab_size=1024, val_fraction=0.1), 1, raw, tmp_path / "tokens")
    assert metrics["train_tokens"] + metrics["val_tokens"] == 5145 + 2
    assert metrics["train_bytes"] + metrics["val_bytes"] == 20479


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_tokenize_repeats_to_the_byte(tmp_path: Path, kind: str) -> None:
    raw = tmp_path / "raw"
    (raw / "corpus").mkdir(parents=True)
    folder_with(raw / "corpus", a=BOOK)
    params = TokenizerParams(kind=kind, vocab_size=280, val_fraction=0.1)
    metrics = [tokenize(params, 7, raw, tmp_path / out) for out in ("a", "b")]
    assert metrics[0] == metrics[1]
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    shard = open_shard(tmp_path / "a" / "train.bin")
    p = np.bincount(shard.tokens) / shard.n_tokens
    entropy = -sum(x * np.log(x) for x in p if x)
    assert metrics[0]["unigram_entropy_nats"] == pytest.approx(entropy, abs=1e-4)
