"""A task made of functions, for tests of the training loop itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gpt2core.training.batches import Batch
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.task import Step, Task
from gpt2core.training.trainer import Recipe, fit


class FunctionTask(Task):
    """Each method of the task is a function given to it."""

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Sequence[Batch]],
        loss: Callable[[Batch], Tensor],
        max_steps: int,
        on_step: Callable[[Step], None] = lambda done: None,
        is_evaluated: Callable[[int], bool] = lambda step: False,
        evaluate: Callable[[int], Any] = lambda step: None,
        loss_module: nn.Module | None = None,
    ) -> None:
        super().__init__("training", model, max_steps, seed=7)
        self.loss_module = loss_module or model
        self._batches, self._loss, self._on_step = batches, loss, on_step
        self._is_evaluated, self._evaluate = is_evaluated, evaluate

    def batch(self, step: int) -> Sequence[Batch]:
        return self._batches(step)

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(batch)

    def on_step(self, done: Step) -> dict[str, float]:
        self._on_step(done)
        return super().on_step(done)

    def is_evaluated(self, step: int) -> bool:
        return self._is_evaluated(step)

    def evaluate(self, step: int) -> dict[str, float]:
        return self._evaluate(step) or {}


def train(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    schedule: Callable[[int], float],
    batches: Callable[[int], Sequence[Batch]],
    loss: Callable[[Batch], Tensor],
    *,
    max_steps: int,
    grad_clip: float = 0.0,
    patience_evals: int | None = None,
    checkpoints: CheckpointManager | None = None,
    **functions: Any,
) -> int:
    """Fit a `FunctionTask`; returns the step whose weights the model has."""
    task = FunctionTask(model, batches, loss, max_steps, **functions)
    return fit(task, Recipe(optimizers, schedule, grad_clip, patience_evals=patience_evals), checkpoints)
