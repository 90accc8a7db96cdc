"""Sampling of the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.model.inference import Packed

NEARLY_GREEDY = 1e-6  # a lower temperature is greedy; float32 logits divided by it may overflow


@dataclass(frozen=True)
class Sampling:
    """Options for sampling the next token.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens, with ties at the k-th place (Fan et al. 2018).
        top_p: keep the smallest set of most likely tokens with this total probability, with ties at its edge (Holtzman
            et al. 2020).
        min_p: keep tokens with at least this fraction of the highest probability (Nguyen et al. 2024).
        repetition_penalty: divides positive logits of tokens that are already in the row, and multiplies negative ones
            (CTRL, Keskar et al. 2019); above 1 it discourages repetition, also with temperature 0.

    Raises:
        UserError: a value is out of range; names it and the allowed values.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature: {self.temperature} must be a finite number from 0 (greedy) up")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k: {self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} must be above 0 and at most 1")
        if self.min_p is not None and not 0 < self.min_p <= 1:
            raise UserError(f"min_p: {self.min_p} must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"repetition_penalty: {self.repetition_penalty} must be finite and above 0 (1 is none)")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < NEARLY_GREEDY

    def penalize(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Return logits [B, V] with the repetition penalty for the tokens in `ids` [B, S]."""
        if self.repetition_penalty == 1:
            return logits
        seen = logits.gather(-1, ids)  # [B, S]
        seen = torch.where(seen < 0, seen * self.repetition_penalty, seen / self.repetition_penalty)
        return logits.scatter(-1, ids, seen)

    def filter(self, logits: Tensor) -> Tensor:
        """Return logits [B, V] after temperature, top-k, top-p, and min-p; -inf for excluded tokens."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.size(-1):
            logits = _at_least(logits, logits.topk(self.top_k).values[:, -1:])
        if self.top_p is not None and self.top_p < 1:
            logits = _at_least(logits, _edge_of_nucleus(logits, self.top_p))
        if self.min_p is not None:
            logits = _at_least(logits, logits.amax(-1, keepdim=True) + math.log(self.min_p))
        return logits

    def draw(self, logits: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the next token [B] of each row of logits [B, V], by inverting the distribution function.

        `u` [B] is uniform in (0, 1]; from torch's global generator if None. Greedy sampling needs none.

        Raises:
            UserError: a row's logits have NaN or infinity, so none is the most likely.
        """
        check_finite(logits.amax(-1))
        if self.greedy:
            return logits.argmax(-1)
        if u is None:
            u = next(uniforms([None] * len(logits), logits.device))
        cdf = self.filter(logits).softmax(-1).cumsum(-1, dtype=torch.float64)  # [B, V]
        # The first token whose sum reaches u · total. As u > 0, it is not an excluded one.
        return torch.searchsorted(cdf, u[:, None] * cdf[:, -1:]).squeeze(-1)


def next_logits(model: Packed, hidden: Tensor, ids: Tensor, sampling: Sampling) -> Tensor:
    """Return logits [B, V] after hidden states [B, C], with the repetition penalty for the tokens in `ids` [B, S].

    Ids of a padded vocabulary that have no token get -inf.
    """
    logits = sampling.penalize(model.lm_head(hidden), ids)
    if model.n_tokens < logits.size(-1):
        logits[:, model.n_tokens :] = float("-inf")
    return logits


def check_finite(values: Tensor) -> None:
    """Raise UserError if results of a model have NaN or infinity."""
    if not bool(values.isfinite().all()):
        raise UserError(
            "the model's output is not finite (NaN or infinity), so its weights are damaged or too large; "
            "gpt2core verify MODEL_DIR names the tensors"
        )


def _at_least(logits: Tensor, threshold: Tensor) -> Tensor:
    """Return logits [B, V] with -inf below a threshold [B, 1]."""
    return logits.masked_fill(logits < threshold, float("-inf"))


def _edge_of_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return the lowest logit [B, 1] in the smallest set of most likely tokens with probability `top_p`."""
    V, k = logits.size(-1), 256
    log_total = logits.logsumexp(-1, keepdim=True)  # [B, 1]
    while True:  # sorting the whole vocabulary takes milliseconds, and the set is usually small
        ordered = logits.topk(min(k, V)).values  # [B, k]
        p = (ordered - log_total).exp()
        inside = p.cumsum(-1) - p < top_p  # [B, k]: the tokens before it have less than top_p
        if k >= V or not bool(inside[:, -1].any()):
            return ordered.gather(-1, inside.sum(-1, keepdim=True) - 1)
        k *= 8


def seed_of_each_row(seed: int | Sequence[int | None] | None, n_rows: int) -> list[int | None]:
    """Return the seed of each row. A single seed s gives row r the seed s + r; None gives None.

    Raises:
        UserError: there are more or fewer seeds than rows.
    """
    if seed is None:
        return [None] * n_rows
    if isinstance(seed, int):
        return [seed + row for row in range(n_rows)]
    if len(seed) != n_rows:
        raise UserError(f"seed: {len(seed)} seeds for {n_rows} rows; give one for each, or a single number")
    return list(seed)


def uniforms(seeds: Sequence[int | None], device: torch.device) -> Iterator[Tensor]:
    """Yield, for each step, numbers [B] uniform in (0, 1] that depend only on the row's seed and the step.

    They are drawn on the CPU, so that a seed gives the same numbers on every device. A seed of None takes torch's
    global generator.
    """
    generators = [None if seed is None else torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        block = [1 - torch.rand(64, dtype=torch.float64, generator=generator) for generator in generators]
        yield from torch.stack(block, dim=1).to(device)  # [64, B], one row per step
