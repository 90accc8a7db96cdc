"""A few steps of a training on random ids, in a process of its own: how long one takes, and the most memory.

A model of many blocks is measured with few of them: time and memory grow by the same amount with each block.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2core.config.finetune_classify import FinetuneClassify
from gpt2core.config.finetune_instruct import FinetuneInstruct
from gpt2core.config.pretrain import Pretrain
from gpt2core.errors import UserError
from gpt2core.params import Params

if TYPE_CHECKING:
    import torch

    from gpt2core.training.batches import Batch

MAX_WHOLE_LAYERS = 4  # of a model that is measured as it is
DEPTHS = (2, 4)  # of a deeper one
TIMED_STEPS = 3
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Training:
    """What a stage does: `n_steps` updates, each of `n_micro` micro-batches of `batch_size` texts.

    n_tokens: of a text, on average; longest: of the longest. n_forward: micro-batches that are only read, to evaluate.
    """

    stage: str
    n_steps: int
    n_micro: int
    n_forward: float
    batch_size: int
    n_tokens: int
    longest: int
    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int


@dataclass(frozen=True)
class Cost:
    """step_s: of a micro-batch with its update. memory_bytes: the process's at its peak, or the GPU's."""

    step_s: float
    memory_bytes: float


def measure(training: Training, params: Params) -> Cost:
    """Measure, and scale to all blocks.

    Raises:
        UserError: a step takes more memory or time than there is.
    """
    if training.n_layer <= MAX_WHOLE_LAYERS:
        return _alone(training, params)
    few, more = (_alone(replace(training, n_layer=depth), params) for depth in DEPTHS)
    blocks = (training.n_layer - DEPTHS[1]) / (DEPTHS[1] - DEPTHS[0])
    return Cost(
        more.step_s + blocks * max(0.0, more.step_s - few.step_s),
        more.memory_bytes + blocks * max(0.0, more.memory_bytes - few.memory_bytes),
    )


def _alone(training: Training, params: Params) -> Cost:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        return pool.submit(steps, training, params).result(TIMEOUT_S)
    except BrokenProcessPool:
        raise UserError("a single step was killed: there is not enough memory for it") from None
    except (
        RuntimeError,
        MemoryError,
    ) as error:  # torch's allocators raise the former
        reason = (str(error).splitlines() or ["out of memory"])[0]
        raise UserError(f"a single step cannot be taken ({reason[:120]})") from None
    except TimeoutError:
        raise UserError(f"a few steps took more than {TIMEOUT_S:g} s") from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(cancel_futures=True)


def steps(training: Training, params: Params) -> Cost:
    """One step with the longest texts, for the memory, then some with usual ones. Runs in a process of its own."""
    import torch

    from gpt2core import runtime
    from gpt2core.model.quantized import quantize_linears
    from gpt2core.training.classify import new_classifier
    from gpt2core.training.optimizers import adamw
    from gpt2core.training.pretrain import new_model, new_optimizers
    from gpt2core.training.trainable import add_adapters, freeze_except
    from gpt2core.training.trainer import train

    _first_to_be_killed()
    device = runtime.device()
    sizes = dict(n_layer=training.n_layer, n_head=training.n_head, n_embd=training.n_embd, n_positions=training.longest)
    recipe = params.pretrain.model_copy(update={**sizes, "init": "random"})
    language_model = new_model(recipe, training.vocab_size, seed=0)
    model: torch.nn.Module = language_model
    optimizers: list[torch.optim.Optimizer]
    section: Pretrain | FinetuneClassify | FinetuneInstruct
    if training.stage == "pretrain":
        section = params.pretrain
        optimizers = new_optimizers(language_model.to(device), section)
    elif training.stage == "finetune-classify":
        section = params.finetune_classify
        model = new_classifier(language_model, ("ham", "spam"), section.trainable, 0, section.position)
        if section.trainable == "lora":
            add_adapters(model, section)
        model.to(device)
        optimizers = [adamw(model.parameters(), lr=section.lr, weight_decay=0.1, beta2=0.95)]
    else:
        section = params.finetune_instruct
        freeze_except(language_model, section.trainable)
        if section.trainable == "lora":
            if section.lora_base_dtype != "float32":
                quantize_linears(language_model.transformer.h, section.lora_base_dtype)
            add_adapters(language_model, section)
        optimizers = [adamw(language_model.to(device).parameters(), lr=section.lr, weight_decay=0.1, beta2=0.95)]
    language_model.transformer.activation_checkpointing = section.activation_checkpointing
    dtype = runtime.training_dtype(section.dtype)
    is_classifier = training.stage == "finetune-classify"

    def loss_sum(batch: Batch) -> torch.Tensor:
        if is_classifier:
            return torch.nn.functional.cross_entropy(model(*batch.inputs).float(), batch.targets, reduction="sum")
        target_positions = batch.inputs[1] if len(batch.inputs) > 1 else None
        return language_model.loss_sum(batch.inputs[0], batch.targets, target_positions)

    def run(n_tokens: int, max_steps: int) -> float:
        batch = random_batch(training, n_tokens)
        start_s = time.perf_counter()
        train(
            model, optimizers, lambda step: 1.0, lambda step: [batch], loss_sum, max_steps=max_steps, grad_clip=1.0,
            dtype=dtype, on_step=lambda done: None, is_pause=lambda step: False, on_pause=lambda step: None,
        )  # fmt: skip
        return time.perf_counter() - start_s

    run(training.longest, 1)
    step_s = run(training.n_tokens, TIMED_STEPS) / TIMED_STEPS
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes()
    return Cost(step_s, peak)


def random_batch(training: Training, n_tokens: int) -> Batch:
    """A micro-batch of texts of `n_tokens` random ids, in the form that the training takes."""
    import torch

    from gpt2core.training.batches import Batch, next_token_batch

    ids = torch.randint(training.vocab_size, (training.batch_size, n_tokens))  # [B, T]
    if training.stage == "pretrain":
        return Batch((ids,), ids)
    if training.stage == "finetune-classify":
        lengths = torch.full((training.batch_size,), n_tokens)
        return Batch((ids, lengths), torch.zeros(training.batch_size, dtype=torch.long))
    return next_token_batch(ids.tolist(), ids.tolist(), 0)


def peak_bytes() -> int:
    """The most memory that this process held. `ru_maxrss` would be the parent's where that held more."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        import resource

        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _first_to_be_killed() -> None:
    """Where memory runs out, it is this process that goes, and not somebody's work."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    except OSError:
        return
