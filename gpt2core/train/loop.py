"""The training loop. It knows nothing of what is trained, of MLflow or of DVC."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpt2core import numerics
from gpt2core.errors import UserError
from gpt2core.model.attention import CausalSelfAttention
from gpt2core.runtime import seed_everything
from gpt2core.train import distributed

MIN_HALVED_ELEMENTS = 1024  # ids of a micro-batch; below, two threads wait more for each other than they gain


def read_every_steps(device: torch.device) -> int:
    """How many steps' figures are read together: on an accelerator several, since reading one waits for its step."""
    return 1 if device.type == "cpu" else 20


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
        """The same on `device`; from pinned memory, so that the copy runs beside the computation."""
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
class Step:
    """What a step did. loss: mean nats a target; grad_norm: before clipping; lr: the last optimizer's; step: steps
    done so far."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    n_targets: int


class Unread(NamedTuple):
    """A step whose figures are still on the device."""

    step: int
    loss: Tensor
    grad_norm: Tensor
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
    start_step: int = 0,
    dtype: torch.dtype = torch.float32,
    dropout_seed: Callable[[int], int] | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    is_pause: Callable[[int], bool] = lambda step: False,
    on_pause: Callable[[int], bool | None] = lambda step: None,
) -> None:
    """Train up to `max_steps` steps. Nothing in a step waits for the device; what it did is read some steps later.

    Args:
        model: its trainable parameters are clipped together. With several processes, what `parallel_loss` made.
        optimizers: over the same parameters, each in one of them (see `optim.py`).
        schedule: the learning rate of a step, as a factor of each group's `initial_lr`.
        batches: the micro-batches of a step, a pure function of the step; their gradients add up to one update. It is
            called in a thread of its own, one step ahead. With several processes, those of this one, equally many.
        loss_sum: the loss of a batch summed over its targets. It is divided by the targets of the whole step, so that
            cutting a step into micro-batches of unequal numbers of targets changes nothing, nor does the number of
            processes.
        max_steps: how many updates.
        grad_clip: the largest gradient norm; 0 for no limit.
        start_step: updates that were done before.
        dtype: float32, or bfloat16 for autocast (weights and optimizer stay in float32).
        dropout_seed: seeds the random generators anew at each step; None: they go on from the step before.
        on_step: called for each update in order, on an accelerator some steps later.
        is_pause: whether to pause after so many steps, to evaluate or to save.
        on_pause: called in a pause with the steps done; all of them were read and finite, the model is as they left it.
            True ends the training there. With several processes, all must say the same.

    Raises:
        UserError: the loss or the gradient of a step is not finite. The weights are spoiled then; no pause follows.
    """
    device = next(model.parameters()).device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    in_halves = numerics.is_portable() and not _draws(model)
    read_every = read_every_steps(device)
    unread: list[Unread] = []

    def add_gradients(loss_of: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """Add a micro-batch's gradients to the parameters'; return its loss."""

        def of_part(part: Batch) -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                part_loss = loss_of(part)
            (part_loss * distributed.size()).backward()  # DDP and FSDP take the mean, and the sum is wanted
            return part_loss.detach()

        if not in_halves or batch.inputs[0].numel() < MIN_HALVED_ELEMENTS:
            return of_part(batch)
        # The sum of two gradients does not depend on which comes first; that of three would.
        earlier = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        losses = numerics.on_two_threads(of_part, batch.halves())
        for parameter, gradient in zip(parameters, earlier, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.add_(gradient)
        return torch.stack(losses).sum()

    model.train()
    for step, (micro_batches, n_own) in enumerate(_prefetched(batches, start_step, max_steps, device), start_step):
        n_targets = int(distributed.total(n_own))
        if dropout_seed:
            seed_everything(dropout_seed(step))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(step)
        lr = optimizers[-1].param_groups[0]["lr"]
        loss = torch.zeros((), device=device)
        for number, batch in enumerate(micro_batches, 1):
            distributed.sync_gradients(model, number == len(micro_batches))
            loss += add_gradients(lambda part: loss_sum(part) / n_targets, batch)  # noqa: B023  # called at once
        grad_norm = distributed.whole(nn.utils.clip_grad_norm_(parameters, grad_clip or float("inf")))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        unread.append(Unread(step + 1, loss, grad_norm, lr, n_targets))
        pause = distributed.total(is_pause(step + 1)) > 0  # when it is time to save, one may see first
        if pause or len(unread) == read_every or step + 1 == max_steps:
            for done in _read(unread):
                on_step(done)
            unread.clear()
        if pause:
            if on_pause(step + 1):
                return
            model.train()


def _draws(model: nn.Module) -> bool:
    """Whether a forward pass in training draws random numbers: two threads would draw them in any order."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0)
        or (isinstance(module, CausalSelfAttention) and module.dropout > 0)
        for module in model.modules()
    )


def _prefetched(
    batches: Callable[[int], Sequence[Batch]], start_step: int, max_steps: int, device: torch.device
) -> Iterator[tuple[list[Batch], int]]:
    """The micro-batches of each step on the device, and their targets; made while the step before is under way."""

    def make(step: int) -> tuple[list[Batch], int]:
        made = batches(step)
        return [batch.to(device) for batch in made], sum(batch.n_targets for batch in made)

    if start_step >= max_steps:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        coming = thread.submit(make, start_step)
        for step in range(start_step, max_steps):
            made = coming.result()
            if step + 1 < max_steps:
                coming = thread.submit(make, step + 1)
            yield made


def _read(unread: Sequence[Unread]) -> Iterator[Step]:
    """The figures of some steps, fetched at once. Raises UserError at the first that is not finite."""
    losses = distributed.total_(torch.stack([row.loss for row in unread]))
    grad_norms = torch.stack([row.grad_norm.to(row.loss) for row in unread])
    figures = torch.stack((losses, grad_norms), dim=1).tolist()
    for row, (loss, grad_norm) in zip(unread, figures, strict=True):
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not abs(value) < float("inf"):  # neither infinite nor NaN
                raise UserError(
                    f"step {row.step}: the {name} is {value} (learning rate {row.lr:g}); stopped, and nothing of this "
                    "step is kept. Lower lr, raise warmup_steps, lower grad_clip, or use dtype: float32"
                )
        yield Step(row.step, loss, grad_norm, row.lr, row.n_targets)
