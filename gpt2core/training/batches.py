"""Which examples a step sees: pure functions of (seed, step), so that nothing else can change them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gpt2core.corpus.shards import release
from gpt2core.errors import UserError
from gpt2core.model.padding import pad

IGNORE = -100  # a target of this value does not count (torch's cross_entropy default)


@dataclass(frozen=True)
class Batch:
    """What a forward pass takes, and the targets."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Inputs, and targets."""
        return *self.inputs, self.targets

    @property
    def n_targets(self) -> int:
        return self.targets.numel()

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`, copied from pinned memory, so that the copy overlaps the computation."""
        if device.type == "cpu":
            return self
        pin = device.type == "cuda"
        *inputs, targets = (
            (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin) for tensor in self.tensors
        )
        return replace(self, inputs=tuple(inputs), targets=targets)

    def halves(self) -> list[Batch]:
        """Two batches with half of the rows each; this one alone if it has one row."""
        half = len(self.targets) // 2
        if not half:
            return [self]
        return [
            Batch(tuple(tensor[rows] for tensor in self.inputs), self.targets[rows])
            for rows in (slice(0, half), slice(half, None))
        ]


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """Ids [B, T] and the places [n] in the flattened [B * T] that have a target; the targets [n]."""

    def halves(self) -> list[Batch]:
        ids, places = self.inputs
        half = len(ids) // 2
        if not half:
            return [self]
        n_first = int((places < half * ids.shape[1]).sum())  # they are in order
        return [
            MaskedBatch((ids[:half], places[:n_first]), self.targets[:n_first]),
            MaskedBatch((ids[half:], places[n_first:] - half * ids.shape[1]), self.targets[n_first:]),
        ]


class WindowSampler:
    """Windows of a token array, each token once an epoch.

    An epoch cuts the array into windows of `context` tokens from a random offset and goes through them in random order.

    Args:
        tokens: [n], may be a memory map.
        context: tokens of a window; targets are the next tokens.
        batch_size: windows of a batch.
    """

    def __init__(self, tokens: np.ndarray, context: int, batch_size: int, seed: int, where: str):
        if len(tokens) < context + 1:
            raise UserError(
                f"{where}: {len(tokens)} tokens are fewer than one context of {context} and its next token; "
                "bring more text, or lower pretrain.context"
            )
        self.tokens, self.context, self.batch_size, self.seed = tokens, context, batch_size, seed
        # One window fewer than fits where there are several, so that every offset has as many.
        self.windows = max(1, (len(tokens) - 1) // context - 1)
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> np.ndarray:
        """The starts of an epoch's windows, in order: [windows]"""
        rng = np.random.default_rng([self.seed, epoch])
        slack = len(self.tokens) - 1 - self.windows * self.context
        return rng.integers(slack + 1) + self.context * rng.permutation(self.windows)

    def batch(self, index: int) -> Batch:
        """Batch number `index`: ids [B, T] and the next ids [B, T]."""
        return self.windows_of(range(index * self.batch_size, (index + 1) * self.batch_size))

    def windows_of(self, numbers: Sequence[int]) -> Batch:
        """The windows of these numbers, counted through all epochs: ids [B, T] and the next ids [B, T]."""
        rows = []
        for number in numbers:
            start = self.epoch(number // self.windows)[number % self.windows]
            rows.append(self.tokens[start : start + self.context + 1])
        ids = torch.from_numpy(np.stack(rows).astype(np.int64))  # [B, T + 1]
        release(self.tokens)
        return Batch((ids[:, :-1],), ids[:, 1:])


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's batches of example numbers: random, but with like lengths together, so that little is padding.

    Shuffled examples are taken in pools of 16 batches, sorted by length within the pool, cut, and the batches shuffled.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), 16 * batch_size):
        pool = sorted(order[start : start + 16 * batch_size].tolist(), key=lambda i: lengths[i])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def next_token_batch(ids: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Examples of ids and, for each, the target at its position, -100 where there is none; see `GPT.loss_sum`.

    Returns:
        ids [B, T], padded with `pad_id`; the places [n] that have a target in the flattened [B * T]; and these targets.
    """
    flat = pad(targets, IGNORE).flatten()  # [B * T]
    target_positions = (
        (flat != IGNORE).nonzero().squeeze(1)
    )  # [n]; found here, since on a GPU everything would wait for it
    return MaskedBatch((pad(ids, pad_id), target_positions), flat[target_positions])
