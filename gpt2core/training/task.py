"""What a training is about: a model, its batches, its loss, and its evaluation."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gpt2core.training import distributed
from gpt2core.training.batches import Batch


@dataclass(frozen=True)
class Step:
    """The figures of one update."""

    step: int  # number of updates so far, this one included
    loss: float  # mean nats per target
    grad_norm: float  # before clipping
    lr: float  # learning rate of the last optimizer
    n_targets: int  # in all processes together


class Task(ABC):
    """What `trainer.fit` trains: pretraining, a classifier, or an instruction-tuned model.

    Attributes:
        name: shown in messages and at the progress bar.
        model: its trainable parameters are updated.
        loss_module: computes the loss; the model, or what DDP or FSDP made of it.
        max_steps: number of updates.
        seed: of dropout, where several processes train.
        curve: a row per evaluation, with the mean training loss since the row before.
    """

    def __init__(self, name: str, model: nn.Module, max_steps: int, seed: int) -> None:
        self.name, self.model, self.max_steps, self.seed = name, model, max_steps, seed
        self.loss_module = model
        self.curve: list[dict[str, float]] = []
        self._losses: list[float] = []  # of the steps since the last row of `curve`

    @abstractmethod
    def batch(self, step: int) -> Sequence[Batch]:
        """Return the batch of a step as micro-batches, whose gradients add up to one update.

        It is a pure function of the step, and is called in another thread while the step before is computed. With
        several processes it returns those of this process, in each equally many.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a micro-batch in nats, summed over its targets: []."""

    @abstractmethod
    def is_evaluated(self, step: int) -> bool:
        """Return whether the model is evaluated after `step` steps."""

    @abstractmethod
    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate the model after `step` steps, and return the metrics to log.

        `val_loss` among them decides which weights are kept, and when the training ends, if `patience_evals` is set and
        `counts_for_patience`.
        """

    def counts_for_patience(self, step: int) -> bool:
        """Return whether the evaluation after `step` steps counts for early stopping: those that add to `curve` do."""
        return True

    def use_model(self, model: Any) -> None:
        """Replace `model` by one with the same weights."""
        self.model = model

    @contextlib.contextmanager
    def full_model(self) -> Iterator[None]:
        """Let `model` have all weights, also where they are sharded, until the block ends."""
        sharded = self.model
        self.use_model(distributed.full_model(self.loss_module, on_all=True))
        try:
            yield
        finally:
            self.use_model(sharded)

    def evaluate_base(self) -> bool:
        """Evaluate the model before the first step; return whether that took long enough to be saved."""
        return False

    def on_step(self, done: Step) -> dict[str, float]:
        """Record an update, and return the metrics to log."""
        self._losses.append(done.loss)
        return {"train_loss": done.loss, "lr": done.lr, "grad_norm": done.grad_norm}

    def mean_train_loss(self) -> float:
        """Return the mean loss of the steps since the last call, in nats per target."""
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Return what the task has recorded so far, as values of JSON."""
        return {"curve": self.curve, "losses": self._losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.curve, self._losses = state["curve"], state["losses"]
