"""The training loop of all three trainings. It knows neither what is trained, nor MLflow, nor DVC."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpt2core import numerics, runtime
from gpt2core.config.optimization import Optimization
from gpt2core.errors import UserError
from gpt2core.model.attention import CausalSelfAttention
from gpt2core.training import distributed
from gpt2core.training.batches import Batch
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.compiling import compiled_blocks, uncompiled
from gpt2core.training.early_stopping import EarlyStopping
from gpt2core.training.halves import Backward, halves
from gpt2core.training.optimizers import new_optimizers
from gpt2core.training.resume import ResumableTraining
from gpt2core.training.schedules import new_schedule
from gpt2core.training.task import Step, Task

OnMetrics = Callable[[dict[str, float], int], None]  # metrics by name, and their step


def log_nothing(metrics: dict[str, float], step: int) -> None:
    """Log nothing."""


@dataclass(frozen=True)
class Recipe:
    """How a task's parameters are updated."""

    optimizers: Sequence[torch.optim.Optimizer]  # each trainable parameter is in one of them
    schedule: Callable[[int], float]  # learning rate of a step, as a factor of each parameter group's `initial_lr`
    grad_clip: float = 0.0  # largest gradient norm, of all parameters together; 0: no limit
    dtype: torch.dtype = torch.float32  # or bfloat16 for autocast; weights and optimizer state stay in float32
    compile: bool = False  # whether the blocks run compiled by `torch.compile`
    patience_evals: int | None = None  # see `EarlyStopping`


def new_recipe(params: Optimization, model: nn.Module, max_steps: int, dtype: torch.dtype) -> Recipe:
    """Return the recipe that the params describe, with new optimizers for the trainable parameters of `model`."""
    return Recipe(
        new_optimizers(model, params),
        new_schedule(params.schedule, params.warmup_steps, max_steps, params.min_lr_ratio, params.decay_fraction),
        params.grad_clip,
        dtype,
        runtime.should_compile(params.compile, max_steps),
        params.patience_evals,
    )


def fit(
    task: Task,
    recipe: Recipe,
    checkpoints: CheckpointManager | None = None,
    on_metrics: OnMetrics = log_nothing,
) -> int:
    """Train a task up to its last step, or until its validation loss has stopped falling.

    A training that was stopped continues from its newest checkpoint, and ends with the same bytes as one that was not.
    Nothing in a step waits for the device: on an accelerator, the figures of several steps are read together.

    Args:
        task: what is trained.
        recipe: how its parameters are updated.
        checkpoints: where the training is saved; None: nowhere. Of several processes, the first one has them.
        on_metrics: called with metrics and their step, in order.

    Returns:
        The step whose weights the model has: the last one, or with `patience_evals` the best one.

    Raises:
        UserError: the loss or the gradient of a step is not finite; no checkpoint has the weights after it.
    """
    device = next(task.model.parameters()).device
    stopping = EarlyStopping(task.model, recipe.patience_evals)
    resume = ResumableTraining(
        checkpoints, task.model, recipe.optimizers, task.max_steps,
        lambda: {"task": task.state_dict(), "stopping": stopping.state_dict()}, task.name, stopping.best,
    )  # fmt: skip
    if extra_state := resume.restore():
        task.load_state_dict(extra_state["task"])
        stopping.load_state_dict(extra_state["stopping"])
        on_metrics({}, resume.step)  # metrics without a step belong to the last one
    elif task.evaluate_base():
        resume.save_extra_state()
    last_step = resume.step if stopping.is_over else task.max_steps
    unread: list[_Unread] = []
    task.model.train()
    with (
        compiled_blocks(task.model, recipe.compile),
        resume,
        _progress_bar(task.name, resume.step, last_step) as bar,
        _gradients(task, recipe.dtype) as add_gradients,
    ):
        for step, micro_batches in _prefetched(task.batch, resume.step, last_step, device):
            unread.append(_update(task, recipe, step, micro_batches, add_gradients))
            n_steps = step + 1
            is_evaluated = task.is_evaluated(n_steps)
            is_due = is_evaluated or resume.is_due(n_steps)
            pause = distributed.all_reduce_sum(is_due) > 0  # a process may see before the others that a save is due
            if pause or len(unread) == read_every_steps(device) or n_steps == last_step:
                _report(task, unread, bar, on_metrics)
            if pause:
                if is_evaluated:
                    _evaluate(task, n_steps, stopping, on_metrics)
                resume.on_pause(n_steps, is_last=stopping.is_over)
                task.model.train()
            if stopping.is_over:
                return stopping.restore_best(n_steps)
    return stopping.restore_best(last_step)


def _report(task: Task, unread: list[_Unread], bar: tqdm[Any], on_metrics: OnMetrics) -> None:
    for done in _read(unread):
        bar.set_postfix(loss=f"{done.loss:.3f}", refresh=False)
        bar.update()
        on_metrics(task.on_step(done), done.step)
    unread.clear()


def _evaluate(task: Task, n_steps: int, stopping: EarlyStopping, on_metrics: OnMetrics) -> None:
    with uncompiled(task.model):
        metrics = task.evaluate(n_steps)
    on_metrics(metrics, n_steps)
    if "val_loss" in metrics and task.counts_for_patience(n_steps):
        stopping.update(n_steps, metrics["val_loss"])


def _update(task: Task, recipe: Recipe, step: int, micro_batches: Sequence[Batch], add_gradients: Backward) -> _Unread:
    """Do one update of the parameters: gradients of all micro-batches, clipping, and the optimizers' step."""
    n_targets = int(distributed.all_reduce_sum(sum(batch.n_targets for batch in micro_batches)))
    if distributed.world_size() > 1:
        runtime.seed_everything(distributed.dropout_seed(task.seed, step))
    for optimizer in recipe.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * recipe.schedule(step)
    parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    loss = torch.zeros((), device=parameters[0].device)
    for number, batch in enumerate(micro_batches, 1):
        distributed.sync_gradients(task.loss_module, number == len(micro_batches))
        loss += add_gradients(batch, n_targets)
    grad_norm = distributed.full_tensor(nn.utils.clip_grad_norm_(parameters, recipe.grad_clip or float("inf")))
    for optimizer in recipe.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return _Unread(step + 1, loss, grad_norm, recipe.optimizers[-1].param_groups[0]["lr"], n_targets)


@contextlib.contextmanager
def _gradients(task: Task, dtype: torch.dtype) -> Iterator[Backward]:
    """Yield what adds the gradients of a micro-batch; with `numerics: portable`, it computes each batch in halves."""
    parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    device_type = parameters[0].device.type
    if device_type == "cpu":
        runtime.reuse_memory()

    def backward(batch: Batch, n_targets: int) -> Tensor:
        """Add the gradients of a micro-batch of a step with `n_targets` targets; return its share of the mean loss."""
        # The targets of the whole step divide the sum, so that neither unequal micro-batches nor the number of
        # processes change the result.
        with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
            loss = task.loss(batch) / n_targets
        (loss * distributed.world_size()).backward()  # DDP and FSDP take the mean of all processes; this is a sum
        return loss.detach()

    if not numerics.is_portable() or _has_dropout(task.model):
        yield backward
        return
    with contextlib.closing(halves(parameters, backward)) as both:
        yield both.add_gradients


def _has_dropout(model: nn.Module) -> bool:
    """Return whether a forward pass draws random numbers: two halves would not draw those of the whole batch."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0)
        or (isinstance(module, CausalSelfAttention) and module.dropout > 0)
        for module in model.modules()
    )


def _progress_bar(name: str, step: int, last_step: int) -> Any:
    disable = True if distributed.rank() else None  # None: unless standard error is a terminal
    return tqdm(total=last_step, initial=step, desc=name, unit="step", disable=disable)


def _prefetched(
    batch_of: Callable[[int], Sequence[Batch]], start_step: int, last_step: int, device: torch.device
) -> Iterator[tuple[int, list[Batch]]]:
    """Yield each step's number and its micro-batches on the device, made while the step before is computed."""

    def make(step: int) -> list[Batch]:
        return [batch.to(device) for batch in batch_of(step)]

    if start_step >= last_step:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        coming = thread.submit(make, start_step)
        for step in range(start_step, last_step):
            micro_batches = coming.result()
            if step + 1 < last_step:
                coming = thread.submit(make, step + 1)
            yield step, micro_batches


class _Unread(NamedTuple):
    """The figures of a step while its loss and gradient norm are still on the device; see `Step`."""

    step: int
    loss: Tensor
    grad_norm: Tensor
    lr: float
    n_targets: int


def read_every_steps(device: torch.device) -> int:
    """Return how many steps' figures are read together: on an accelerator several, since reading waits for the step."""
    return 1 if device.type == "cpu" else 20


def _read(unread: Sequence[_Unread]) -> Iterator[Step]:
    """Yield the figures of several steps, fetched from the device together.

    Raises:
        UserError: at the first step whose loss or gradient norm is not finite.
    """
    losses = distributed.all_reduce_sum_(torch.stack([row.loss for row in unread]))
    grad_norms = torch.stack([row.grad_norm.to(row.loss) for row in unread])
    figures = torch.stack((losses, grad_norms), dim=1).tolist()
    for row, (loss, grad_norm) in zip(unread, figures, strict=True):
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not abs(value) < float("inf"):  # neither infinite nor NaN
                raise UserError(
                    f"step {row.step}: the {name} is {value} (learning rate {row.lr:g}); stopped, and nothing of this "
                    "step is kept. Lower lr (and muon_lr), raise warmup_steps, lower grad_clip, or use dtype: float32"
                )
        yield Step(row.step, loss, grad_norm, row.lr, row.n_targets)
