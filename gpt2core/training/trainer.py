"""The training loop. It knows nothing of what is trained, of MLflow or of DVC."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpt2core import numerics
from gpt2core.errors import UserError
from gpt2core.model.attention import CausalSelfAttention
from gpt2core.runtime import seed_everything
from gpt2core.training import distributed
from gpt2core.training.batches import Batch
from gpt2core.training.halves import Backward, halves


def read_every_steps(device: torch.device) -> int:
    """How many steps' figures are read together: on an accelerator several, since reading one waits for its step."""
    return 1 if device.type == "cpu" else 20


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
        optimizers: over the same parameters, each in one of them (see `optimizers.py`).
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
    read_every = read_every_steps(device)
    unread: list[Unread] = []

    def backward(batch: Batch, n_targets: int) -> Tensor:
        """Add the gradients of a micro-batch to the parameters', in a step with so many targets; return its loss."""
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = loss_sum(batch) / n_targets
        (loss * distributed.world_size()).backward()  # DDP and FSDP take the mean, and the sum is wanted
        return loss.detach()

    model.train()
    with _in_halves(model, backward) as add_gradients:
        for step, (micro_batches, n_own) in enumerate(_prefetched(batches, start_step, max_steps, device), start_step):
            n_targets = int(distributed.all_reduce_sum(n_own))
            if dropout_seed:
                seed_everything(dropout_seed(step))
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * schedule(step)
            lr = optimizers[-1].param_groups[0]["lr"]
            loss = torch.zeros((), device=device)
            for number, batch in enumerate(micro_batches, 1):
                distributed.sync_gradients(model, number == len(micro_batches))
                loss += add_gradients(batch, n_targets)
            grad_norm = distributed.full_tensor(nn.utils.clip_grad_norm_(parameters, grad_clip or float("inf")))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            unread.append(Unread(step + 1, loss, grad_norm, lr, n_targets))
            pause = distributed.all_reduce_sum(is_pause(step + 1)) > 0  # when it is time to save, one may see first
            if pause or len(unread) == read_every or step + 1 == max_steps:
                for done in _read(unread):
                    on_step(done)
                unread.clear()
            if pause:
                if on_pause(step + 1):
                    return
                model.train()


@contextlib.contextmanager
def _in_halves(model: nn.Module, backward: Backward) -> Iterator[Backward]:
    """Yield `backward`, or with `numerics: portable` one that computes each batch in halves."""
    if not numerics.is_portable() or _draws(model):
        yield backward
        return
    with contextlib.closing(halves([p for p in model.parameters() if p.requires_grad], backward)) as both:
        yield both.add_gradients


def _draws(model: nn.Module) -> bool:
    """Whether a forward pass in training draws random numbers: those of two halves would not be those of the batch."""
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
    losses = distributed.all_reduce_sum_(torch.stack([row.loss for row in unread]))
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
