"""Saving a training, and resuming it: it ends with the same bytes as one that was never stopped.

Batches and learning rates are pure functions of the step, so a checkpoint needs only the trainable weights, the
optimizers, the random generators (dropout), and what the training recorded (its curve).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from gpt2core.errors import UserError
from gpt2core.log import logger
from gpt2core.signals import Terminated
from gpt2core.training import distributed
from gpt2core.training.checkpoints import Checkpoint, CheckpointManager

SAVE_INTERVAL_S = 60.0
MAX_SAVING_SHARE = 0.01  # of the time; if saving takes long, it happens less often
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ResumableTraining:
    """Save a training from time to time and after a signal to stop, and restore it.

    Ctrl-C and SIGTERM save first, at the next pause of the loop, and then end it by `KeyboardInterrupt` and its kind
    `Terminated`; a second Ctrl-C ends it immediately. When a checkpoint is saved does not change any result.

    Args:
        checkpoints: where they are kept; None: nowhere, and signals are left as they are. Of several processes, the
            first one passes them, and all do the same at the same step.
        model: its trainable weights are saved; frozen ones are those of the base.
        optimizers: their state is saved; the params make their groups.
        max_steps: the last checkpoint needs no optimizers.
        extra_state: returns what else the training knows at a pause, as values of JSON.
        name: of the training, in messages.
        best: further tensors by name, the same names from the first step to the last; saved, and restored in place.
    """

    def __init__(
        self,
        checkpoints: CheckpointManager | None,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        max_steps: int,
        extra_state: Callable[[], dict[str, Any]],
        name: str = "training",
        best: Mapping[str, Tensor] | None = None,
    ):
        self.checkpoints = CheckpointManager.join(checkpoints)
        self.model, self.optimizers, self.name = model, optimizers, name
        self.max_steps, self.extra_state, self.best = max_steps, extra_state, best or {}
        self.step = 0  # of the newest checkpoint
        self._fixed_interval_s = save_interval_s()
        self._interval_s = SAVE_INTERVAL_S if self._fixed_interval_s is None else self._fixed_interval_s
        self._saved_s = time.monotonic()
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def restore(self) -> dict[str, Any]:
        """Restore model, optimizers, and random generators from the newest checkpoint; return its extra state."""
        newest = self.checkpoints.newest() if self.checkpoints else None
        if newest is None:
            return {}
        self.step = newest.step
        if self.step:
            load_state(newest, self.model, self.optimizers)
            for key, tensor in self.best.items():
                distributed.local_part(tensor).copy_(newest.tensors[f"best.{key}"])
        when = datetime.fromtimestamp(newest.saved_s).strftime("%Y-%m-%d %H:%M:%S")
        logger.info(f"{self.name}: resumed at step {newest.step} of {self.max_steps} (checkpoint of {when})")
        return newest.extra_state

    def save_extra_state(self) -> None:
        """Save what was computed before the first step."""
        if self.checkpoints and self.step == 0:
            self.checkpoints.save(0, {}, self.extra_state())

    def is_due(self, step: int) -> bool:
        """Return whether the loop should pause, for a checkpoint or to stop."""
        if self.checkpoints is None or step <= self.step:
            return False
        is_due = time.monotonic() - self._saved_s >= self._interval_s or self.checkpoints.folder.is_lost
        return is_due or step == self.max_steps or self._signal is not None

    def on_pause(self, step: int, is_last: bool = False) -> None:
        """Save if it is time to, or if this is the last step; end the training after a signal.

        Raises:
            KeyboardInterrupt: after Ctrl-C; Terminated: after SIGTERM.
        """
        if self.checkpoints is None:
            return
        if is_last:
            self.max_steps = step
        if distributed.all_reduce_sum(self.is_due(step)):
            self._save(self.checkpoints, step)
        self._end_if_signaled()

    def _save(self, checkpoints: CheckpointManager, step: int) -> None:
        start_s = time.monotonic()
        optimizers = () if step == self.max_steps else self.optimizers
        tensors = state_tensors(self.model, optimizers)
        tensors |= {f"best.{key}": tensor for key, tensor in self.best.items()}
        if checkpoints.save(step, tensors, self.extra_state()):
            self.step = step
        self._saved_s = time.monotonic()
        if self._fixed_interval_s is None:
            self._interval_s = max(SAVE_INTERVAL_S, (self._saved_s - start_s) / MAX_SAVING_SHARE)

    def __enter__(self) -> ResumableTraining:
        if self.checkpoints and threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._stop) for number in SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self.checkpoints and not error:
            self._end_if_signaled()  # after the last pause

    def _end_if_signaled(self) -> None:
        if distributed.all_reduce_sum(self._signal is not None):
            number, self._signal = self._signal, None
            logger.info(f"{self.name}: saved at step {self.step} of {self.max_steps}; run the same command to continue")
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._signal and distributed.rank() == 0:
            # Not by the logger: the signal may have come in the middle of a write to standard error.
            os.write(2, b"\nstopping: finishing this step and saving it first (Ctrl-C again: stop immediately)\n")
        self._signal = number


def state_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return trainable weights, and the state of the optimizers and of the random generators, by name."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                assert isinstance(value, Tensor), f"{type(optimizer).__name__}: {name} is no tensor"
                tensors[f"optimizer.{number}.{index}.{name}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


@torch.no_grad()
def load_state(state: Checkpoint, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Load what `state_tensors` returned; the last checkpoint has no optimizers and leaves them unchanged."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            distributed.local_part(parameter).copy_(state.tensors[f"model.{name}"])
    for number, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        values: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.tensors.items():
            if key.startswith(f"optimizer.{number}."):
                index, name = key.split(".", 3)[2:]
                is_sharded = key in state.sharded
                value = distributed.from_local_part(tensor, parameters[int(index)]) if is_sharded else tensor
                values.setdefault(int(index), {})[name] = value.clone()
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(state.tensors["random.cpu"])
    if "random.cuda" in state.tensors and torch.cuda.is_available():  # it may continue on another machine
        torch.cuda.set_rng_state(state.tensors["random.cuda"])


def save_interval_s() -> float | None:
    """Return `GPT2CORE_SAVE_INTERVAL_S` in seconds, 0 for every step; None if it is not set."""
    asked = os.environ.get("GPT2CORE_SAVE_INTERVAL_S")
    if asked is None:
        return None
    try:
        interval_s = float(asked)
    except ValueError:
        interval_s = -1.0
    if not 0 <= interval_s < float("inf"):
        raise UserError(f"GPT2CORE_SAVE_INTERVAL_S={asked}: must be a number of seconds, 0 or more")
    return interval_s
