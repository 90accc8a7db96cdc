"""Lengths of tokens and documents, counted in constant memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpt2core.corpus.shards import Shard, release
from gpt2core.tokenizer import Tokenizer

BLOCK_TOKENS = 1 << 22
TOKEN_COLUMNS = ("bytes", "vocabulary", "text")
DOCUMENT_COLUMNS = ("from", "to", "documents")


def token_counts(shard: Shard) -> np.ndarray:
    """Count each token of the vocabulary: [V]."""
    counts = np.zeros(shard.vocab_size, np.int64)
    for block in _blocks(shard):
        counts += np.bincount(block, minlength=shard.vocab_size)
    return counts


def token_lengths(tokenizer: Tokenizer, shard: Shard) -> list[dict[str, int]]:
    """Count the tokens of the vocabulary and of the text for each length in bytes; `<|endoftext|>` has none."""
    counts = token_counts(shard)
    lengths = np.zeros(shard.vocab_size, np.int64)
    for token, token_id in tokenizer.ranks.items():
        lengths[token_id] = len(token)
    vocabulary = np.bincount(lengths)  # [longest + 1]
    text = np.bincount(lengths, weights=counts).astype(np.int64)
    return [
        dict(zip(TOKEN_COLUMNS, (n, int(vocabulary[n]), int(text[n])), strict=True))
        for n in range(1, len(vocabulary))
        if vocabulary[n]
    ]


def document_lengths(shard: Shard, eot_id: int) -> list[dict[str, int]]:
    """Count documents of `from` to `to` (exclusive) tokens, in powers of two, without the separator.

    A last document without its separator counts, too, and an empty one is 0 to 1.
    """
    sizes = np.zeros(64, np.int64)  # documents by the number of bits of their length
    length = 0  # of the unfinished document
    for block in _blocks(shard):
        ends = np.flatnonzero(block == eot_id)
        if len(ends):
            lengths = np.diff(ends, prepend=-1) - 1
            lengths[0] += length
            sizes += np.bincount(_bits(lengths), minlength=64)
            length = len(block) - 1 - int(ends[-1])
        else:
            length += len(block)
    if length:
        sizes[int(length).bit_length()] += 1
    first, last = np.flatnonzero(sizes)[[0, -1]].tolist()
    return [
        dict(zip(DOCUMENT_COLUMNS, (1 << bits >> 1, 1 << bits, int(sizes[bits])), strict=True))
        for bits in range(first, last + 1)
    ]


def _bits(lengths: np.ndarray) -> np.ndarray:
    """Return the number of bits of each length [n] -> [n]: 0, 1, 2, 2, 3 for 0 to 4."""
    return np.frexp(lengths.astype(np.float64))[1]


def _blocks(shard: Shard) -> Iterator[np.ndarray]:
    for start in range(0, shard.n_tokens, BLOCK_TOKENS):
        yield np.asarray(shard.tokens[start : start + BLOCK_TOKENS])
        release(shard.tokens)
