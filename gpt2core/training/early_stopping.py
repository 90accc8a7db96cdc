"""Early stopping: keep the weights with the lowest validation loss (Prechelt 1998, "Early Stopping - But When?")."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gpt2core.errors import UserError


class EarlyStopping:
    """End a training when its validation loss has not fallen for some evaluations, and keep its best weights.

    Args:
        model: its trainable parameters are kept.
        patience_evals: evaluations without a lower validation loss until the training ends; None: it never ends early,
            and the weights of the last step are kept.

    Attributes:
        best: the kept parameters by name; empty without patience.
    """

    def __init__(self, model: nn.Module, patience_evals: int | None) -> None:
        self._model, self._patience_evals = model, patience_evals
        self._best_loss, self._best_step, self._n_evals_since = float("inf"), 0, 0
        self.best = {name: p.clone() for name, p in self._trainable()} if patience_evals else {}

    @torch.no_grad()
    def update(self, step: int, val_loss: float) -> None:
        """Keep the weights if their validation loss is the lowest so far; of equals the first stay.

        Raises:
            UserError: the validation loss is not finite.
        """
        if not self._patience_evals:
            return
        if not math.isfinite(val_loss):
            raise UserError(f"step {step}: the validation loss is {val_loss}; lower lr, or use dtype: float32")
        self._n_evals_since += 1
        if val_loss < self._best_loss:
            self._best_loss, self._best_step, self._n_evals_since = val_loss, step, 0
            for name, parameter in self._trainable():
                self.best[name].copy_(parameter)

    @property
    def is_over(self) -> bool:
        """Whether the patience has ended."""
        return self._patience_evals is not None and self._n_evals_since >= self._patience_evals

    def restore_best(self, last_step: int) -> int:
        """Give the model its best weights, and return the step that they are of: `last_step` without patience."""
        if not self.best:
            return last_step
        self._model.load_state_dict(self.best, strict=False)
        return self._best_step

    def state_dict(self) -> dict[str, Any]:
        """Return all but the weights, as values of JSON."""
        best_loss = None if self._best_loss == float("inf") else self._best_loss
        return {"best_loss": best_loss, "best_step": self._best_step, "n_evals_since": self._n_evals_since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._best_loss = float("inf") if state["best_loss"] is None else state["best_loss"]
        self._best_step, self._n_evals_since = state["best_step"], state["n_evals_since"]

    def _trainable(self) -> list[tuple[str, Tensor]]:
        return [(name, p.detach()) for name, p in self._model.named_parameters() if p.requires_grad]
