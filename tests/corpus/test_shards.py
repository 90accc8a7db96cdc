"""Token shards: written, joined, shuffled, refused when damaged, and read without taking memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2core.corpus import shards
from gpt2core.corpus.documents import Piece
from gpt2core.corpus.shards import HEADER, documents, join_shards, open_shard, write_shard
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe
from tests.corpus.corpora import BOOK


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([BOOK], 300)


def test_a_shard_holds_what_was_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shard = write_shard(tmp_path / "x.bin", [Piece("one", False), Piece(" two", True), Piece("thrée", True)], tokenizer)
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
    write_shard(path, [Piece("one two", True)], tokenizer)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        open_shard(path)
    assert "dvc repro --force tokenize" in str(error.value)


def test_encoding_takes_no_more_memory_for_more_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    import tracemalloc

    def peak_bytes(repeats: int) -> int:
        tracemalloc.start()
        write_shard(tmp_path / "x.bin", (Piece(BOOK, True) for _ in range(repeats)), tokenizer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    small, large = peak_bytes(100), peak_bytes(400)  # 2.5 and 10 MB, encoded a megabyte at a time
    assert large < 1.3 * small


def parts_of(tmp_path: Path, tokenizer: Tokenizer, n_documents: int) -> list[Path]:
    """Shards of numbered documents; each but the last breaks off inside one, and one is empty."""
    paths = []
    for number, some in enumerate(np.array_split(np.arange(n_documents), 7)):
        pieces = [Piece(f"tale {i} of the lantern", True) for i in some]
        if number:
            pieces.insert(0, Piece(" ends here", True))
        if number < 6:
            pieces.append(Piece(f"a long tale {number}", False))
        paths.append(tmp_path / f"{len(paths)}.bin")
        with shards.shard_writer(paths[-1], tokenizer) as writer:
            for piece in pieces:
                writer.add(piece)
        if number == 3:
            paths.append(tmp_path / f"{len(paths)}.bin")
            with shards.shard_writer(paths[-1], tokenizer):
                pass
    return paths


def texts(shard: shards.Shard, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(ids.tolist()) for ids in documents(shard, tokenizer.eot_id)]


def test_joined_shards_are_one_after_the_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    parts = parts_of(tmp_path, tokenizer, 100)
    joined = join_shards(tmp_path / "all.bin", parts, tokenizer)
    assert joined.tokens.tobytes() == b"".join(path.read_bytes()[HEADER.size :] for path in parts)
    assert joined.n_documents == len(texts(joined, tokenizer)) == 106


@pytest.mark.parametrize("bucket_bytes", [100, 32 << 20])
def test_shuffling_keeps_every_document_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, bucket_bytes: int
) -> None:
    monkeypatch.setattr(shards, "BUCKET_BYTES", bucket_bytes)
    monkeypatch.setattr(shards, "BLOCK_TOKENS", 50)
    parts = parts_of(tmp_path, tokenizer, 500)
    plain = join_shards(tmp_path / "plain.bin", parts, tokenizer)
    shuffled, again, other = (
        join_shards(tmp_path / f"{name}.bin", parts, tokenizer, np.random.default_rng(seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert sorted(texts(shuffled, tokenizer)) == sorted(texts(plain, tokenizer))
    assert (shuffled.n_documents, shuffled.n_bytes) == (plain.n_documents, plain.n_bytes)
    assert shuffled.tokens.tobytes() == again.tokens.tobytes()
    assert len({tuple(texts(shard, tokenizer)) for shard in (plain, shuffled, other)}) == 3
    # A document comes from anywhere: in a random order, places correlate by 1 / sqrt(500) = 0.045.
    order = [texts(plain, tokenizer).index(text) for text in texts(shuffled, tokenizer)]
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.2


def test_every_order_is_equally_likely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    monkeypatch.setattr(shards, "BUCKET_BYTES", 8)
    write_shard(tmp_path / "x.bin", [Piece(letter, True) for letter in "abc"], tokenizer)
    rng = np.random.default_rng(1)
    orders = [
        "".join(texts(join_shards(tmp_path / "y.bin", [tmp_path / "x.bin"], tokenizer, rng), tokenizer))
        for _ in range(600)
    ]
    counts = np.unique(orders, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 100) ** 2 / 100).sum() < 20.5  # chi-squared of 5 degrees of freedom: one in a thousand


def test_training_reads_a_shard_without_taking_memory(tmp_path: Path) -> None:
    """256 MB of batches, read through: neither the process's own memory grows nor what it has mapped."""
    n_tokens = 1 << 27
    with (tmp_path / "big.bin").open("wb") as file:
        file.write(HEADER.pack(b"gpt2toks", 1, 2, 50257, n_tokens, 1, 4 * n_tokens))
        file.truncate(HEADER.size + 2 * n_tokens)
    code = f"""
import re
from pathlib import Path
from gpt2core.corpus.shards import open_shard
from gpt2core.training.batches import WindowSampler

def resident_mb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

sampler = WindowSampler(open_shard({str(tmp_path / "big.bin")!r}).tokens, 1024, 1, "train.bin")
sampler.windows_of(range(256))
before, seen = resident_mb(), 0
for start in range(0, sampler.windows // 256 * 256, 256):
    seen += sampler.windows_of(range(start, start + 256)).targets.numel()
print(seen, resident_mb() - before)
"""
    seen, grown_mb = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert int(seen) > 0.99 * n_tokens
    assert float(grown_mb) < 20
