"""The training loop. It knows nothing of what is trained, of MLflow or of DVC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt2core.errors import UserError

IGNORE = -100  # a target of this value does not count (torch's cross_entropy default)


@dataclass(frozen=True)
class Batch:
    """What a forward pass takes, and the targets; -100 where there is none."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(tuple(tensor.to(device) for tensor in self.inputs), self.targets.to(device))

    @property
    def n_targets(self) -> int:
        return int((self.targets != IGNORE).sum())


@dataclass(frozen=True)
class Step:
    """What a step did. loss: mean nats a target; grad_norm: before clipping; lr: the last optimizer's; step: steps
    done so far."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    n_targets: int


def train(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    schedule: Callable[[int], float],
    batches: Callable[[int], Sequence[Batch]],
    loss_sum: Callable[[Batch], Tensor],
    *,
    max_steps: int,
    grad_clip: float,
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[Step], None] = lambda step: None,
) -> None:
    """Train for `max_steps` steps.

    Args:
        model: its trainable parameters are clipped together.
        optimizers: over the same parameters, each in one of them (see `optim.py`).
        schedule: the learning rate of a step, as a factor of each group's `initial_lr`.
        batches: the micro-batches of a step, a pure function of the step; their gradients add up to one update.
        loss_sum: the loss of a batch summed over its targets. It is divided by the targets of the whole step, so that
            cutting a step into micro-batches of unequal numbers of targets changes nothing.
        max_steps: how many updates.
        grad_clip: the largest gradient norm; 0 for no limit.
        dtype: float32, or bfloat16 for autocast (weights and optimizer stay in float32).
        on_step: called after each update.

    Raises:
        UserError: the loss or the gradient is not finite; the bad step does not touch the weights.
    """
    device = next(model.parameters()).device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step in range(max_steps):
        model.train()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(step)
        lr = optimizers[-1].param_groups[0]["lr"]
        micro_batches = batches(step)
        n_targets = sum(batch.n_targets for batch in micro_batches)
        loss = 0.0
        for batch in micro_batches:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                micro_loss = loss_sum(batch.to(device)) / max(1, n_targets)
            micro_loss.backward()
            loss += micro_loss.item()
        grad_norm = nn.utils.clip_grad_norm_(parameters, grad_clip or float("inf")).item()
        _check_finite(step + 1, loss, grad_norm, lr)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        on_step(Step(step + 1, loss, grad_norm, lr, n_targets))


def _check_finite(step: int, loss: float, grad_norm: float, lr: float) -> None:
    """inf and NaN, without importing more than the two comparisons that tell them."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not abs(value) < float("inf"):
            raise UserError(
                f"step {step}: the {name} is {value} (learning rate {lr:g}); stopped before it reached the weights. "
                "Lower lr, raise warmup_steps, lower grad_clip, or use dtype: float32"
            )
