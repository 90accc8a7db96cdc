"""The model to beat: an interpolated Kneser-Ney trigram (Kneser and Ney 1995; Chen and Goodman 1999, section 2.7).

It counts, and sees two tokens back; what a language model gains over it is what it learned of longer dependence.
"""

from __future__ import annotations

import math

import numpy as np


class Trigram:
    """p(w | u v) with absolute discounting: what is taken from the seen is given to the bigram, and so on to uniform.

    Below the trigram, counts are of distinct left neighbours, which is Kneser and Ney's idea. Everything is arrays of
    sorted n-gram codes: n-gram (u, v, w) has code (u V + v) V + w.

    Args:
        tokens: training ids, [n].
        vocab_size: V; V³ must fit in int64, so V < 2²¹.
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
        """p of each word [m] after its two tokens of context [m, 2] -> [m]"""
        V = self.vocab_size
        words = np.asarray(words, np.int64)
        contexts = np.asarray(contexts, np.int64)
        p = np.full(len(words), 1 / V)
        p = self.orders[2].interpolate(np.zeros(len(words), np.int64), words, p)
        p = self.orders[1].interpolate(contexts[:, 1], words, p)
        return self.orders[0].interpolate(contexts[:, 0] * V + contexts[:, 1], words, p)

    def nats(self, tokens: np.ndarray, start_id: int) -> float:
        """Total cross-entropy in nats of all tokens, the first two after `start_id`."""
        ids = np.concatenate([[start_id, start_id], np.asarray(tokens, np.int64)])
        contexts = np.stack([ids[:-2], ids[1:-1]], axis=1)  # [n, 2]
        return float(-np.log(self.probabilities(contexts, ids[2:])).sum())

    def bits_per_byte(self, tokens: np.ndarray, start_id: int, n_bytes: int) -> float:
        return self.nats(tokens, start_id) / math.log(2) / n_bytes


class _Order:
    """The counts of one order, by context."""

    def __init__(self, codes: np.ndarray, counts: np.ndarray, vocab_size: int):
        self.codes, self.counts, self.vocab_size = codes, counts, vocab_size
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        self.discount = once / (once + 2 * twice) if once else 0.5  # Ney, Essen and Kneser 1994
        self.contexts, first = np.unique(codes // vocab_size, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.followers = np.diff(np.append(first, len(codes)))

    def interpolate(self, contexts: np.ndarray, words: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """max(count - discount, 0) / total + discount * followers / total * lower; `lower` where a context is new."""
        total, seen = _look_up(self.contexts, self.totals, contexts)
        followers, _ = _look_up(self.contexts, self.followers, contexts)
        count, _ = _look_up(self.codes, self.counts, contexts * self.vocab_size + words)
        total = np.maximum(total, 1)
        p = np.maximum(count - self.discount, 0) / total + self.discount * followers / total * lower
        return np.where(seen, p, lower)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value of each wanted key (0 if absent), and whether it is there."""
    if not len(keys):  # a text of fewer than three tokens has no trigram
        return np.zeros(len(wanted), values.dtype), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = keys[at] == wanted
    return np.where(found, values[at], 0), found
