"""Token shards: a header and the ids of a split as one array, memory-mapped by the training.

Layout (little endian): 8 bytes magic, then version, bytes a token (2 or 4), vocabulary size (uint32 each), padding to
24 bytes, then the numbers of tokens, documents and UTF-8 bytes of text (uint64 each), zeros up to byte 64, ids.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2core import files
from gpt2core.data.corpus import Piece
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer

MAGIC = b"gpt2toks"
VERSION = 1
HEADER = struct.Struct("<8sIIIxxxxQQQ16x")


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


def write_shard(path: str | os.PathLike[str], pieces: Iterable[Piece], tokenizer: Tokenizer) -> Shard:
    """Encode pieces one by one, `<|endoftext|>` behind each document, and write them atomically in constant memory."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    n_tokens = n_documents = n_bytes = 0
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(bytes(HEADER.size))
        for piece in pieces:
            ids = tokenizer.encode(piece.text)
            if piece.ends_document:
                ids.append(tokenizer.eot_id)
            np.asarray(ids, dtype).tofile(file)
            n_tokens += len(ids)
            n_documents += piece.ends_document
            n_bytes += len(piece.text.encode())
        file.seek(0)
        sizes = (dtype.itemsize, tokenizer.vocab_size, n_tokens, n_documents, n_bytes)
        file.write(HEADER.pack(MAGIC, VERSION, *sizes))
    return open_shard(path)


def open_shard(path: str | os.PathLike[str]) -> Shard:
    """Memory-map a shard. Raises UserError if it is missing, something else, of another version, or truncated."""
    path = Path(path)
    again = "make it again: dvc repro --force tokenize"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER.size)
    except FileNotFoundError:
        raise UserError(f"{path}: no such token shard; {again}") from None
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise UserError(f"{path}: not a token shard (it must begin with {MAGIC!r}); {again}")
    _, version, itemsize, vocab_size, n_tokens, n_documents, n_bytes = HEADER.unpack(header)
    if version != VERSION or itemsize not in (2, 4):
        raise UserError(f"{path}: token shard of version {version}, this program reads {VERSION}; {again}")
    if size != HEADER.size + n_tokens * itemsize:
        raise UserError(
            f"{path}: damaged: {size:,} bytes where the header promises {HEADER.size + n_tokens * itemsize:,} "
            f"({n_tokens:,} tokens); {again}"
        )
    if n_tokens == 0:
        raise UserError(f"{path}: holds no tokens: the corpus is too short to split; bring more text and {again}")
    tokens = np.memmap(path, dtype=f"<u{itemsize}", mode="r", offset=HEADER.size, shape=(n_tokens,))
    return Shard(tokens, vocab_size, n_documents, n_bytes)


def documents(shard: Shard, eot_id: int) -> list[np.ndarray]:
    """The ids of each document of a shard, without the separator."""
    ends = np.flatnonzero(shard.tokens == eot_id)
    parts = np.split(np.asarray(shard.tokens), ends + 1)
    return [part[:-1] if i < len(ends) else part for i, part in enumerate(parts) if len(part)]
