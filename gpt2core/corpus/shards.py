"""Token shards: a header and the ids of a split as one array, memory-mapped by the training.

Layout (little endian): 8 bytes magic, then version, bytes per token (2 or 4), vocabulary size (uint32 each), padding to
24 bytes, then the numbers of tokens, documents and UTF-8 bytes of text (uint64 each), zeros up to byte 64, ids.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt2core import files
from gpt2core.corpus.documents import Piece
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.bulk import BulkEncoder

CONTINUED = "continued"  # folder of a second corpus, in data/raw/corpus and data/tokens
MAGIC = b"gpt2toks"
VERSION = 1
HEADER = struct.Struct("<8sIIIxxxxQQQ16x")
BATCH_CHARS = 1 << 20  # text that is encoded in one call
BUCKET_BYTES = 32 << 20  # ids that are shuffled in memory
MAX_BUCKETS = 512  # open files; beyond 16 GB of ids the buckets grow
BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True)
class Shard:
    """An open shard: `tokens` is a read-only memory map of the ids, [n_tokens], uint16 or uint32."""

    tokens: np.ndarray
    vocab_size: int
    n_documents: int
    n_bytes: int

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


class ShardWriter:
    """Encoder of pieces of documents into a file that starts with room for the header, in constant memory."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer):
        self._file, self._encoder = file, _encoder(tokenizer)
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._pieces: list[Piece] = []
        self._n_chars = 0
        self.n_tokens = self.n_documents = self.n_bytes = 0

    def add(self, piece: Piece) -> None:
        """Add a piece; `<|endoftext|>` follows one that ends its document."""
        self._pieces.append(piece)
        self._n_chars += len(piece.text)
        self.n_documents += piece.ends_document
        self.n_bytes += len(piece.text.encode())
        if self._n_chars >= BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        """Write all added pieces."""
        if not self._pieces:
            return
        ids = self._encoder.encode(self._pieces)
        self._file.write(ids.astype(self._dtype).tobytes())
        self.n_tokens += len(ids)
        self._pieces, self._n_chars = [], 0


@functools.lru_cache(maxsize=2)
def _encoder(tokenizer: Tokenizer) -> BulkEncoder:
    """Return one encoder for all shards of a tokenizer: its tables take a while to build."""
    return BulkEncoder(tokenizer)


def token_dtype(vocab_size: int) -> np.dtype:
    """Return uint16 if the ids fit, else uint32; little endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


@contextlib.contextmanager
def shard_writer(path: str | os.PathLike[str], tokenizer: Tokenizer) -> Iterator[ShardWriter]:
    """Yield a writer of a shard that appears at `path` when the block ends without an error."""
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(bytes(HEADER.size))
        writer = ShardWriter(file, tokenizer)
        yield writer
        writer.flush()
        file.seek(0)
        file.write(_header(tokenizer.vocab_size, writer.n_tokens, writer.n_documents, writer.n_bytes))


def write_shard(path: str | os.PathLike[str], pieces: Iterable[Piece], tokenizer: Tokenizer) -> Shard:
    """Encode pieces, `<|endoftext|>` after each document, and write them atomically in constant memory."""
    with shard_writer(path, tokenizer) as writer:
        for piece in pieces:
            writer.add(piece)
    return open_shard(path)


def join_shards(
    path: str | os.PathLike[str],
    parts: Iterable[Path],
    tokenizer: Tokenizer,
    shuffle_with: np.random.Generator | None = None,
) -> Shard:
    """Write the documents of several shards as one shard, in their order or shuffled; atomically.

    Shuffled in constant memory (Rao 1961, Sandelius 1962): each document goes to a random bucket on disk, and each
    bucket is shuffled on its own, which makes every order of the documents equally likely.

    Args:
        path: the new shard.
        parts: shards that this tokenizer wrote; they may be empty, and a document may continue in the next one.
        tokenizer: wrote the parts.
        shuffle_with: decides the order of the documents; None keeps it.
    """
    parts = list(parts)
    sizes = np.array([_read_header(part)[2:] for part in parts], np.int64).sum(axis=0)  # tokens, documents, bytes
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(tokenizer.vocab_size, *map(int, sizes)))
        if shuffle_with is None:
            for part in parts:
                with part.open("rb") as source:
                    source.seek(HEADER.size)
                    shutil.copyfileobj(source, file, 1 << 20)
        else:
            n_buckets = min(MAX_BUCKETS, int(sizes[0]) * 2 // BUCKET_BYTES + 1)
            _shuffle(file, parts, tokenizer, n_buckets, shuffle_with)
    return open_shard(path)


def _shuffle(file: BinaryIO, parts: list[Path], tokenizer: Tokenizer, n_buckets: int, rng: np.random.Generator) -> None:
    dtype = token_dtype(tokenizer.vocab_size)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".shuffle.", dir=parts[0].parent))
        buckets = [stack.enter_context((Path(folder) / str(i)).open("w+b")) for i in range(n_buckets)]
        bucket = buckets[0]
        is_new = True  # whether the next token starts a document
        for block in _blocks(parts, dtype):
            starts, ends = _document_bounds(block, tokenizer.eot_id)
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                if is_new:
                    bucket = buckets[rng.integers(n_buckets)]
                bucket.write(block[start:end].data)
                is_new = block[end - 1] == tokenizer.eot_id
        for bucket in buckets:
            bucket.seek(0)
            tokens = np.frombuffer(bucket.read(), dtype)
            starts, ends = _document_bounds(tokens, tokenizer.eot_id)
            for i in rng.permutation(len(starts)):
                file.write(tokens[starts[i] : ends[i]].data)


def _blocks(parts: Iterable[Path], dtype: np.dtype) -> Iterator[np.ndarray]:
    for part in parts:
        with part.open("rb") as source:
            source.seek(HEADER.size)
            while block := source.read(BLOCK_TOKENS * dtype.itemsize):
                yield np.frombuffer(block, dtype)


def _document_bounds(tokens: np.ndarray, eot_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and ends of all documents, [n] each; an end includes the end-of-text id, if there is one."""
    ends = np.flatnonzero(tokens == eot_id) + 1
    if len(tokens) and (not len(ends) or ends[-1] < len(tokens)):
        ends = np.append(ends, len(tokens))
    return np.concatenate(([0], ends[:-1])).astype(np.int64)[: len(ends)], ends


def _header(vocab_size: int, n_tokens: int, n_documents: int, n_bytes: int) -> bytes:
    itemsize = token_dtype(vocab_size).itemsize
    return HEADER.pack(MAGIC, VERSION, itemsize, vocab_size, n_tokens, n_documents, n_bytes)


def _read_header(path: Path) -> tuple[int, int, int, int, int]:
    """Return bytes per token, vocabulary size, numbers of tokens, documents, and bytes. Raises UserError."""
    again = "make it again: dvc repro --force tokenize"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER.size)
    except FileNotFoundError:
        raise UserError(f"{path}: no such token shard; {again}") from None
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise UserError(f"{path}: not a token shard (it must start with {MAGIC!r}); {again}")
    _, version, itemsize, vocab_size, n_tokens, n_documents, n_bytes = HEADER.unpack(header)
    if version != VERSION or itemsize not in (2, 4):
        raise UserError(f"{path}: token shard of version {version}, this program reads {VERSION}; {again}")
    if size != HEADER.size + n_tokens * itemsize:
        raise UserError(
            f"{path}: damaged: {size:,} bytes where the header promises {HEADER.size + n_tokens * itemsize:,} "
            f"({n_tokens:,} tokens); {again}"
        )
    return itemsize, vocab_size, n_tokens, n_documents, n_bytes


def open_shard(path: str | os.PathLike[str]) -> Shard:
    """Memory-map a shard. Raises UserError if it is missing, empty, something else, of another version, or truncated.

    Pages that were read stay mapped until `release` is called.
    """
    itemsize, vocab_size, n_tokens, n_documents, n_bytes = _read_header(Path(path))
    if n_tokens == 0:
        raise UserError(
            f"{path}: holds no tokens: the corpus is too short to split; add text and make it again: "
            "dvc repro --force tokenize"
        )
    tokens = np.memmap(path, dtype=f"<u{itemsize}", mode="r", offset=HEADER.size, shape=(n_tokens,))
    return Shard(tokens, vocab_size, n_documents, n_bytes)


def release(tokens: np.ndarray) -> None:
    """Give the pages of a memory map back to the system's cache, so that a process does not grow while it reads.

    Pages are mapped again when they are read again. An array that is no memory map stays as it is.
    """
    if isinstance(mapped := getattr(tokens, "_mmap", None), mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def documents(shard: Shard, eot_id: int) -> list[np.ndarray]:
    """Yield the ids of each document of a shard, without the separator."""
    tokens = np.asarray(shard.tokens)
    bounds = zip(*_document_bounds(tokens, eot_id), strict=True)
    return [tokens[start : end - (tokens[end - 1] == eot_id)] for start, end in bounds]


def first_tokens(shard: Shard, eot_id: int, max_tokens: int) -> list[int]:
    """Return the first `max_tokens` ids of the first document of a shard, or all it has; `eot_id` if it is empty."""
    ids = np.asarray(shard.tokens[: max_tokens + 1])
    ends = np.flatnonzero(ids == eot_id)
    return ids[: min(max_tokens, int(ends[0]) if len(ends) else max_tokens)].tolist() or [eot_id]
