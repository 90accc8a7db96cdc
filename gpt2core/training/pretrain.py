"""GPT-2 from random weights on token shards."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from gpt2core import runtime
from gpt2core.config.pretrain import Pretrain
from gpt2core.corpus.shards import Shard
from gpt2core.errors import UserError
from gpt2core.inference import generate
from gpt2core.model import GPT, GPTConfig
from gpt2core.model.induction import write_induction_circuit
from gpt2core.tokenizer import Tokenizer
from gpt2core.training import distributed
from gpt2core.training.batches import Batch, WindowSampler
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.compiling import compiled_blocks, uncompiled
from gpt2core.training.optimizers import adamw, muon_and_adamw
from gpt2core.training.resume import ResumableTraining
from gpt2core.training.schedules import new_schedule
from gpt2core.training.trainable import freeze_except
from gpt2core.training.trainer import Step, train


@dataclass
class Pretrained:
    """The model, a row for each evaluation (see `COLUMNS`), and the text sampled at each."""

    model: GPT
    curve: list[dict[str, float]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


COLUMNS = (
    "tokens", "step", "train_loss", "val_loss", "val_perplexity", "val_bits_per_byte", "lr", "grad_norm",
)  # fmt: skip


def new_model(params: Pretrain, vocab_size: int, seed: int) -> GPT:
    """A model of the size that the params name, with the initial weights that they name, drawn from `seed`.

    Only the part that `params.trainable` names will learn.
    """
    runtime.seed_everything(seed)
    sizes = params.sizes()
    model = GPT(
        GPTConfig(
            vocab_size=vocab_size,
            **sizes,
            resid_pdrop=params.dropout,
            embd_pdrop=params.dropout,
            attn_pdrop=params.dropout,
            qkv_bias=params.qkv_bias,
            tie_word_embeddings=params.tie_weights,
            initializer_range=params.initializer_range,
        )
    )
    if params.init == "induction":
        write_induction_circuit(model)
    freeze_except(model, params.trainable)
    return model


def new_optimizers(model: GPT, params: Pretrain) -> list[torch.optim.Optimizer]:
    """The optimizers that the params name."""
    recipe = dict(lr=params.lr, weight_decay=params.weight_decay, beta1=params.beta1, beta2=params.beta2)
    if params.optimizer == "muon":
        return muon_and_adamw(model, muon_lr=params.muon_lr, **recipe)
    return [adamw(model.parameters(), **recipe)]


@distributed.process_group()
def pretrain(
    params: Pretrain,
    seed: int,
    train_shard: Shard,
    val_shard: Shard,
    tokenizer: Tokenizer,
    on_metrics: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
    states: CheckpointManager | None = None,
) -> Pretrained:
    """Train a new model, where torchrun started several processes by all of them together.

    Args:
        params: sizes and recipe.
        seed: of the initial weights, the order of the data and dropout.
        train_shard, val_shard: tokens of both splits.
        tokenizer: for the samples.
        on_metrics: called with figures and the step they belong to.
        states: where the training is kept, to be resumed if it is stopped; None: nowhere. Of several processes the
            first one keeps it.

    Returns:
        What came out. Of several processes only the first one has a model with its weights.

    Raises:
        UserError: a split is shorter than one context, the processes do not divide a step, or the loss is not finite.
    """
    if problem := params.undivided(distributed.world_size()):
        raise UserError(problem)
    device, dtype = runtime.device(), runtime.training_dtype(params.dtype)
    sampler = WindowSampler(train_shard.tokens, params.context, params.batch_size, seed, "training split")
    val_context = min(params.context, val_shard.n_tokens - 1)
    val_sampler = WindowSampler(val_shard.tokens, max(1, val_context), params.batch_size, seed, "validation split")
    model = new_model(params, tokenizer.vocab_size, seed)
    schedule = new_schedule(
        params.schedule, params.warmup_steps, params.max_steps, params.min_lr_ratio, params.decay_fraction
    )
    model.transformer.activation_checkpointing = params.activation_checkpointing
    compilation = compiled_blocks(model) if runtime.should_compile(params.compile, params.max_steps) else nullcontext()
    loss_sum = distributed.parallel_loss(model, params.sharding, device)
    optimizers = new_optimizers(model, params)
    result = Pretrained(model)
    tokens_seen = 0
    since_eval: list[float] = []  # training losses
    last: Step

    def extra_state() -> dict[str, Any]:
        return {
            "curve": result.curve, "samples": result.samples, "tokens_seen": tokens_seen, "since_eval": since_eval
        }  # fmt: skip

    resume = ResumableTraining(states, model, optimizers, params.max_steps, extra_state, "pretrain")
    if kept := resume.restore():
        result.curve, result.samples = kept["curve"], kept["samples"]
        tokens_seen, since_eval = kept["tokens_seen"], kept["since_eval"]
        on_metrics({}, resume.step)  # what belongs to no step is the last one's
    bits_per_nat_by_byte = val_shard.n_tokens / val_shard.n_bytes / math.log(2)

    def batches(step: int) -> list[Batch]:
        windows = params.grad_accum_steps * params.batch_size  # of the step, whatever the number of processes
        rows = distributed.local_slices(windows, params.batch_size)
        return [sampler.windows_of([step * windows + row for row in some]) for some in rows]

    @torch.no_grad()
    def val_loss() -> float:
        model.eval()
        total = n_targets = 0.0
        for rows in distributed.local_slices(params.eval_batches * params.batch_size, params.batch_size):
            batch = val_sampler.windows_of(rows or [0])  # sharded weights come together only where all take part
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = loss_sum(*batch.to(device).tensors).item()
            total += loss if rows else 0.0
            n_targets += batch.n_targets if rows else 0
        return distributed.all_reduce_sum(total) / distributed.all_reduce_sum(n_targets)

    def on_step(done: Step) -> None:
        nonlocal tokens_seen, last
        tokens_seen, last = tokens_seen + done.n_targets, done
        since_eval.append(done.loss)
        progress.update()
        progress.set_postfix(loss=f"{done.loss:.3f}", refresh=False)
        on_metrics(
            {"train_loss": done.loss, "lr": done.lr, "grad_norm": done.grad_norm, "tokens": tokens_seen}, done.step
        )

    def is_evaluated(step: int) -> bool:
        return step % params.eval_interval_steps == 0 or step == params.max_steps

    def on_pause(step: int) -> None:
        if is_evaluated(step):
            with uncompiled(model):
                evaluate(step)
        resume.on_pause(step)

    def evaluate(step: int) -> None:
        loss = val_loss()
        row = {
            "tokens": tokens_seen,
            "step": step,
            "train_loss": sum(since_eval) / len(since_eval),
            "val_loss": loss,
            "val_perplexity": math.exp(min(loss, 700)),
            "val_bits_per_byte": loss * bits_per_nat_by_byte,
            "lr": last.lr,
            "grad_norm": last.grad_norm,
        }
        since_eval.clear()
        result.curve.append(row)
        on_metrics({key: row[key] for key in ("val_loss", "val_perplexity", "val_bits_per_byte")}, step)
        whole = distributed.full_model(model)
        if distributed.rank() == 0:
            text = sample(whole, tokenizer, params.sample_prompt, params.sample_tokens, seed)
            result.samples.append({"tokens": tokens_seen, "text": text})

    with compilation, resume, tqdm(
        total=params.max_steps, initial=resume.step, desc="pretrain", unit="step",
        disable=True if distributed.rank() else None,
    ) as progress:  # fmt: skip
        train(
            loss_sum, optimizers, schedule, batches, lambda batch: loss_sum(*batch.tensors),
            max_steps=params.max_steps, grad_clip=params.grad_clip, start_step=resume.step, dtype=dtype,
            dropout_seed=partial(distributed.dropout_seed, seed) if distributed.world_size() > 1 else None,
            on_step=on_step, is_pause=lambda step: is_evaluated(step) or resume.is_pause(step), on_pause=on_pause,
        )  # fmt: skip
    result.model = distributed.full_model(model).eval()
    return result


def sample(model: GPT, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, seed: int) -> str:
    """A text drawn from the model at temperature 1, up to the end of a document."""
    model.eval()
    ids = torch.tensor([[tokenizer.eot_id, *tokenizer.encode(prompt)]], device=model.transformer.wte.weight.device)
    drawn = generate(
        model, ids, max_new_tokens, temperature=1.0, seed=seed, eos_id=tokenizer.eot_id
    )[0, 1:].tolist()  # fmt: skip
    return tokenizer.decode(drawn).split("<|endoftext|>")[0]
