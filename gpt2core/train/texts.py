"""The texts of a classifier, batch by batch. What blocks that do not learn make of them is computed once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpt2core import runtime
from gpt2core.model import GPTClassifier
from gpt2core.train.batches import pad

MAX_MEMORY_BYTES = 2**30  # of kept hidden states; more of them lie in a file that nobody else sees
BATCH_SIZE = 64


class Texts:
    """Encoded texts for one model.

    Args:
        model: reads them.
        ids: [n] rows of at least one id.
    """

    def __init__(self, model: GPTClassifier, ids: Sequence[Sequence[int]]):
        self.model, self.ids = model, ids
        self.lengths = [len(row) for row in ids]

    def batch(self, rows: Sequence[int], pad_id: int = 0) -> tuple[Tensor, Tensor]:
        """What `logits` takes of these rows: ids [B, T], padded on the right, and lengths [B]."""
        return pad([self.ids[i] for i in rows], pad_id), self._lengths(rows)

    def logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """[B, T], [B] -> [B, classes]"""
        return self.model(ids, lengths)

    @torch.inference_mode()
    def predict(self, rows: Sequence[int] | None = None, batch_size: int = BATCH_SIZE) -> Tensor:
        """Logits of these rows (or all), [n, classes]; texts of like length are computed together."""
        self.model.eval()
        device = self.model.score.weight.device
        rows = range(len(self.ids)) if rows is None else rows
        logits = torch.empty(len(rows), len(self.model.labels))
        batches = by_length([self.lengths[i] for i in rows], batch_size)
        for places in runtime.progress(batches, what="classify", unit="batch"):
            inputs = (tensor.to(device) for tensor in self.batch([rows[place] for place in places]))
            logits[places] = self.logits(*inputs).float().cpu()
        return logits

    def _lengths(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor([self.lengths[i] for i in rows])


class HalfReadTexts(Texts):
    """The same, with what the first `n_blocks` blocks make of each text computed once, in float32, and kept.

    It is exact where these blocks neither learn nor drop anything. An epoch then costs the other blocks alone.

    Args:
        model: in eval mode its first blocks are run over all texts here.
        ids: [n] rows of at least one id.
        n_blocks: how many blocks are kept the result of.
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
            hidden = model.lower(pad([ids[i] for i in rows], 0).to(device), n_blocks).cpu()  # [B, T, C]
            for i, row in zip(rows, hidden, strict=True):
                self.hidden[self.ends[i] - self.lengths[i] : self.ends[i]] = row[: self.lengths[i]]

    def batch(self, rows: Sequence[int], pad_id: int = 0) -> tuple[Tensor, Tensor]:
        """What `logits` takes of these rows: hidden states [B, T, C], zeros after the end, and lengths [B]."""
        longest = max(self.lengths[i] for i in rows)
        hidden = self.hidden.new_zeros(len(rows), longest, self.model.config.n_embd)
        for place, i in enumerate(rows):
            hidden[place, : self.lengths[i]] = self.hidden[self.ends[i] - self.lengths[i] : self.ends[i]]
        return hidden, self._lengths(rows)

    def logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, C], [B] -> [B, classes]"""
        return self.model.upper(ids, lengths, self.n_blocks)


def by_length(lengths: Sequence[int], batch_size: int = BATCH_SIZE) -> list[list[int]]:
    """The places of all lengths, the shortest first, in batches: little of them is padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _room(n: int, n_embd: int) -> Tensor:
    """Uninitialised [n, n_embd] float32, in memory or mapped from a file that goes with this process."""
    if 4 * n * n_embd <= MAX_MEMORY_BYTES:
        return torch.empty(n, n_embd)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(n, n_embd)))
