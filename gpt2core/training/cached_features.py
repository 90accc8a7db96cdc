"""Hidden states of texts after the frozen blocks of a classifier, computed once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpt2core import runtime
from gpt2core.inference.classify import Texts, by_length
from gpt2core.model import GPTClassifier

MAX_MEMORY_BYTES = 2**30  # of kept hidden states; more of them are in a temporary file


class CachedFeatures(Texts):
    """Encoded texts, and the float32 output of the first `n_blocks` blocks for each of their tokens.

    The output is exact if these blocks are frozen and have no dropout. An epoch then computes only the other blocks.
    """

    @torch.no_grad()
    def __init__(self, model: GPTClassifier, ids: Sequence[Sequence[int]], n_blocks: int):
        super().__init__(model, ids)
        self.n_blocks = n_blocks
        self.ends = np.cumsum(self.lengths)
        self.hidden = _room(int(self.ends[-1]) if len(ids) else 0, model.config.n_embd)  # [tokens of all texts, C]
        model.eval()
        device = model.score.weight.device
        for rows in runtime.progress(by_length(self.lengths), what="frozen blocks", unit="batch"):
            hidden = model.forward_prefix(super().batch(rows)[0].to(device), n_blocks).cpu()  # [B, T, C]
            for i, row in zip(rows, hidden, strict=True):
                self.hidden[self.ends[i] - self.lengths[i] : self.ends[i]] = row[: self.lengths[i]]

    def batch(self, rows: Sequence[int], pad_id: int = 0) -> tuple[Tensor, Tensor]:
        """Return the inputs of `logits`: hidden states [B, T, C] of these rows, padded with zeros, and lengths [B]."""
        longest = max(self.lengths[i] for i in rows)
        hidden = self.hidden.new_zeros(len(rows), longest, self.model.config.n_embd)
        for place, i in enumerate(rows):
            hidden[place, : self.lengths[i]] = self.hidden[self.ends[i] - self.lengths[i] : self.ends[i]]
        return hidden, self._lengths(rows)

    def logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits: hidden states [B, T, C], lengths [B] -> [B, classes]."""
        return self.model.forward_suffix(ids, lengths, self.n_blocks)


def _room(n: int, n_embd: int) -> Tensor:
    """Return an uninitialized [n, n_embd] float32 tensor, in memory or mapped from a temporary file."""
    if 4 * n * n_embd <= MAX_MEMORY_BYTES:
        return torch.empty(n, n_embd)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(n, n_embd)))
