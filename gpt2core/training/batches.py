"""Batches, and which examples each step sees: pure functions of (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt2core.corpus.shards import release
from gpt2core.errors import UserError

T = TypeVar("T")
IGNORE = -100  # marks a position without a target, as in torch's cross_entropy


@dataclass(frozen=True)
class Batch:
    """The inputs of a forward pass, and the targets."""

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
        """Return two batches with half of the rows each; only this one if it has one row."""
        half = len(self.targets) // 2
        if not half:
            return [self]
        return [
            Batch(tuple(tensor[rows] for tensor in self.inputs), self.targets[rows])
            for rows in (slice(0, half), slice(half, None))
        ]


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """A batch in which some positions have no target: ids [B, T], target positions [n] in [B * T], targets [n]."""

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
    """Windows of a token array; an epoch has each token once.

    An epoch cuts the array [n], which may be a memory map, into windows of `context` tokens from a random offset, and
    goes through them in random order. Messages name the split as `where`.
    """

    def __init__(self, tokens: np.ndarray, context: int, seed: int, where: str):
        if len(tokens) < context + 1:
            raise UserError(
                f"{where}: {len(tokens)} tokens are fewer than one context of {context} and its next token; "
                "bring more text, or lower pretrain.context"
            )
        self.tokens, self.context, self.seed = tokens, context, seed
        # One window fewer than fits where there are several, so that every offset has as many.
        self.windows = max(1, (len(tokens) - 1) // context - 1)
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> np.ndarray:
        """Return where the windows of an epoch start, in their order: [windows]."""
        rng = np.random.default_rng([self.seed, epoch])
        slack = len(self.tokens) - 1 - self.windows * self.context
        return rng.integers(slack + 1) + self.context * rng.permutation(self.windows)

    def windows_of(self, numbers: Sequence[int]) -> Batch:
        """Return the windows of these numbers, counted through all epochs: ids [B, T] and the next ids [B, T]."""
        rows = []
        for number in numbers:
            start = self.epoch(number // self.windows)[number % self.windows]
            rows.append(self.tokens[start : start + self.context + 1])
        ids = torch.from_numpy(np.stack(rows).astype(np.int64))  # [B, T + 1]
        release(self.tokens)
        return Batch((ids[:, :-1],), ids[:, 1:])


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return an epoch's batches of example numbers: in random order, with similar lengths together to save padding.

    Shuffled examples are taken in pools of 16 batches, sorted by length within the pool, cut, and the batches shuffled.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), 16 * batch_size):
        pool = sorted(order[start : start + 16 * batch_size].tolist(), key=lambda i: lengths[i])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


class Epochs:
    """Which of the examples, given by their lengths in tokens, each step of several epochs sees; where epochs end.

    The training ends after `max_steps` steps of `step_size` examples; None: after all epochs.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, n_epochs: int, max_steps: int | None, seed: int) -> None:
        self.steps_per_epoch = -(-len(lengths) // step_size)
        all_steps = n_epochs * self.steps_per_epoch
        self.max_steps = min(all_steps, max_steps or all_steps)
        self._step_size, self._n_all = step_size, n_epochs * len(lengths)
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: epoch_order(lengths, step_size, seed, epoch))

    def rows(self, step: int) -> list[int]:
        """Return the numbers of the examples of a step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[number]

    def is_end(self, step: int) -> bool:
        """Return whether an epoch, or the training, ends after `step` steps."""
        return step % self.steps_per_epoch == 0 or step == self.max_steps

    def position(self, step: int) -> dict[str, float]:
        """Return epochs and examples after `step` steps; an epoch that was cut short counts."""
        epoch = -(-step // self.steps_per_epoch)
        return {"epoch": epoch, "examples": min(step * self._step_size, self._n_all)}


def chunks(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut the rows of a step into micro-batches of at most `size`."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def next_token_batch(examples: Iterable[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> MaskedBatch:
    """Return examples as one batch, the shorter ones padded; each has ids and, at each position, the next id or -100.

    Returns:
        ids [B, T]; the positions [n] in the flattened [B * T] with a target; and these targets [n]; see `GPT.loss`.
    """
    ids, targets = ([torch.tensor(row) for row in rows] for rows in zip(*examples, strict=True))
    flat = pad_sequence(targets, batch_first=True, padding_value=IGNORE).flatten()  # [B * T]
    # Not on the device: there, everything would wait for the number of positions.
    target_positions = (flat != IGNORE).nonzero().squeeze(1)  # [n]
    padded = pad_sequence(ids, batch_first=True, padding_value=pad_id)  # [B, T]
    return MaskedBatch((padded, target_positions), flat[target_positions])
