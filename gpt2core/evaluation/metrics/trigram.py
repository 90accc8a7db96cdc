"""The baseline of pretraining: an interpolated Kneser-Ney trigram (Kneser and Ney 1995; Chen and Goodman 1999, 2.7).

It predicts a token from the two before it; a better language model has learned longer dependencies.
"""

from __future__ import annotations

import math

import numpy as np


class Trigram:
    """A trigram model p(w | u v) with absolute discounting and interpolation down to the uniform distribution.

    Lower orders count distinct left neighbors, which is Kneser and Ney's idea. N-grams are arrays of sorted codes:
    (u, v, w) has the code (u V + v) V + w. V³ must fit in int64, so V < 2²¹.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int):
        V = self.vocab_size = vocab_size
        ids = np.asarray(tokens, np.int64)
        trigrams = (ids[:-2] * V + ids[1:-1]) * V + ids[2:]
        codes, counts = np.unique(trigrams, return_counts=True)
        self.orders = [_Order(codes, counts, V)]
        for _ in range(2):  # continuation counts: how many n-grams end in this (n-1)-gram
            codes, counts = np.unique(self.orders[-1].codes % V ** (3 - len(self.orders)), return_counts=True)
            self.orders.append(_Order(codes, counts, V))

    def probabilities(self, contexts: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Return the probability [m] of each word [m] after two tokens of context [m, 2]."""
        V = self.vocab_size
        words = np.asarray(words, np.int64)
        contexts = np.asarray(contexts, np.int64)
        p = np.full(len(words), 1 / V)
        p = self.orders[2].interpolate(np.zeros(len(words), np.int64), words, p)
        p = self.orders[1].interpolate(contexts[:, 1], words, p)
        return self.orders[0].interpolate(contexts[:, 0] * V + contexts[:, 1], words, p)

    def nats(self, tokens: np.ndarray, start_id: int) -> float:
        """Return the total cross-entropy of all tokens [n] in nats; `start_id` precedes the first two."""
        ids = np.concatenate([[start_id, start_id], np.asarray(tokens, np.int64)])
        contexts = np.stack([ids[:-2], ids[1:-1]], axis=1)  # [n, 2]
        return float(-np.log(self.probabilities(contexts, ids[2:])).sum())

    def bits_per_byte(self, tokens: np.ndarray, start_id: int, n_bytes: int) -> float:
        """Return the cross-entropy of all tokens [n] in bits per byte of their text."""
        return self.nats(tokens, start_id) / math.log(2) / n_bytes


class _Order:
    """The counts of n-grams of one order, by context."""

    def __init__(self, codes: np.ndarray, counts: np.ndarray, vocab_size: int):
        self.codes, self.counts, self.vocab_size = codes, counts, vocab_size
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        self.discount = once / (once + 2 * twice) if once else 0.5  # Ney, Essen and Kneser 1994
        self.contexts, first = np.unique(codes // vocab_size, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.followers = np.diff(np.append(first, len(codes)))

    def interpolate(self, contexts: np.ndarray, words: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Return max(count - discount, 0) / total + discount * followers / total * lower; `lower` for a new context."""
        total, seen = _look_up(self.contexts, self.totals, contexts)
        followers, _ = _look_up(self.contexts, self.followers, contexts)
        count, _ = _look_up(self.codes, self.counts, contexts * self.vocab_size + words)
        total = np.maximum(total, 1)
        p = np.maximum(count - self.discount, 0) / total + self.discount * followers / total * lower
        return np.where(seen, p, lower)


def _look_up(keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the value of each query (0 if `keys` do not have it), and whether they have it."""
    if not len(keys):  # a text of fewer than three tokens has no trigram
        return np.zeros(len(queries), values.dtype), np.zeros(len(queries), bool)
    places = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    is_key = keys[places] == queries
    return np.where(is_key, values[places], 0), is_key
