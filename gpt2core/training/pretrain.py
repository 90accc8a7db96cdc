"""Pretraining: a GPT-2 from random weights learns to predict the next token of token shards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
from gpt2core.training.task import Step, Task
from gpt2core.training.trainable import freeze_except
from gpt2core.training.trainer import OnMetrics, fit, new_recipe

COLUMNS = (
    "tokens", "step", "train_loss", "val_loss", "val_perplexity", "val_bits_per_byte", "lr", "grad_norm",
)  # fmt: skip


@dataclass
class Pretrained:
    """The result of pretraining."""

    model: GPT  # of several processes, only the first one has its weights
    curve: list[dict[str, float]]  # a row per evaluation, with `COLUMNS`
    samples: list[dict[str, Any]]  # the text sampled at each evaluation; the last one is by `model`
    kept_step: int  # the step whose weights `model` has

    @property
    def kept_row(self) -> dict[str, float]:
        """The row of `curve` at `kept_step`."""
        return next(row for row in self.curve if row["step"] == self.kept_step)


class PretrainTask(Task):
    """Predict the next token of windows of a shard; the validation loss is of the same windows each time."""

    model: GPT

    def __init__(
        self,
        params: Pretrain,
        seed: int,
        train_shard: Shard,
        val_shard: Shard,
        tokenizer: Tokenizer,
        dtype: torch.dtype,
    ) -> None:
        super().__init__("pretrain", new_model(params, tokenizer.vocab_size, seed), params.max_steps, seed)
        self.params, self.tokenizer = params, tokenizer
        self.device, self.dtype = runtime.device(), dtype
        self.sampler = WindowSampler(train_shard.tokens, params.context, seed, "training split")
        val_context = max(1, min(params.context, val_shard.n_tokens - 1))
        self.val_sampler = WindowSampler(val_shard.tokens, val_context, seed, "validation split")
        self.bits_per_byte_per_nat = val_shard.n_tokens / val_shard.n_bytes / math.log(2)
        self.loss_module = distributed.parallel_loss(self.model, params.sharding, self.device)
        self.samples: list[dict[str, Any]] = []
        self.tokens_seen = 0

    def batch(self, step: int) -> list[Batch]:
        """Return the windows of a step that this process computes: ids [B, T] and the next ids [B, T] each."""
        n_windows = self.params.grad_accum_steps * self.params.batch_size  # in all processes together
        slices = distributed.local_slices(n_windows, self.params.batch_size)
        return [self.sampler.windows_of([step * n_windows + row for row in rows]) for rows in slices]

    def loss(self, batch: Batch) -> Tensor:
        return self.loss_module(*batch.tensors)

    def on_step(self, done: Step) -> dict[str, float]:
        self.tokens_seen, self.last = self.tokens_seen + done.n_targets, done
        return {**super().on_step(done), "tokens": self.tokens_seen}

    def is_evaluated(self, step: int) -> bool:
        return step % self.params.eval_interval_steps == 0 or step == self.max_steps

    def evaluate(self, step: int) -> dict[str, float]:
        val_loss = self.val_loss()
        metrics = {
            "val_loss": val_loss,
            "val_perplexity": math.exp(min(val_loss, 700)),
            "val_bits_per_byte": val_loss * self.bits_per_byte_per_nat,
        }
        self.curve.append(
            {"tokens": self.tokens_seen, "step": step, "train_loss": self.mean_train_loss(), **metrics,
             "lr": self.last.lr, "grad_norm": self.last.grad_norm}
        )  # fmt: skip
        full_model = distributed.full_model(self.model)
        if distributed.rank() == 0:
            self.samples.append({"tokens": self.tokens_seen, "text": self.sample(full_model)})
        return metrics

    @torch.no_grad()
    def val_loss(self) -> float:
        """Return the mean loss of `eval_batches` batches of the validation split, in nats per token."""
        self.model.eval()
        loss_sum = n_targets = 0.0
        for rows in distributed.local_slices(self.params.eval_batches * self.params.batch_size, self.params.batch_size):
            batch = self.val_sampler.windows_of(rows or [0])  # sharded weights need all processes in each forward pass
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.loss(batch.to(self.device)).item()
            loss_sum += loss if rows else 0.0
            n_targets += batch.n_targets if rows else 0
        return distributed.all_reduce_sum(loss_sum) / distributed.all_reduce_sum(n_targets)

    def sample(self, model: GPT) -> str:
        """Return a text drawn at temperature 1, up to the end of a document."""
        model.eval()
        prompt = [self.tokenizer.eot_id, *self.tokenizer.encode(self.params.sample_prompt)]
        ids = torch.tensor([prompt], device=model.transformer.wte.weight.device)  # [1, T]
        drawn = generate(
            model, ids, self.params.sample_tokens, temperature=1.0, seed=self.seed, eos_id=self.tokenizer.eot_id
        )[0, 1:].tolist()  # fmt: skip
        return self.tokenizer.decode(drawn).split("<|endoftext|>")[0]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "samples": self.samples, "tokens_seen": self.tokens_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.samples, self.tokens_seen = state["samples"], state["tokens_seen"]


@distributed.process_group()
def pretrain(
    params: Pretrain,
    seed: int,
    train_shard: Shard,
    val_shard: Shard,
    tokenizer: Tokenizer,
    on_metrics: OnMetrics = lambda metrics, step: None,
    checkpoints: CheckpointManager | None = None,
) -> Pretrained:
    """Train a new model; if torchrun started several processes, all of them train it together.

    The seed is that of the initial weights, the order of the data, and dropout; the tokenizer is for the samples. See
    `fit` for the last two arguments.

    Raises:
        UserError: a split is shorter than one context, the processes do not divide a step, or the loss is not finite.
    """
    if problem := params.undivided(distributed.world_size()):
        raise UserError(problem)
    dtype = runtime.training_dtype(params.dtype)
    task = PretrainTask(params, seed, train_shard, val_shard, tokenizer, dtype)
    kept_step = fit(task, new_recipe(params, task.model, task.max_steps, dtype), checkpoints, on_metrics)
    result = Pretrained(distributed.full_model(task.model).eval(), task.curve, task.samples, kept_step)
    if result.samples and result.kept_row is not result.curve[-1]:
        result.samples.append(next(row for row in task.samples if row["tokens"] == result.kept_row["tokens"]))
    return result


def new_model(params: Pretrain, vocab_size: int, seed: int) -> GPT:
    """Return a model of the sizes and with the initial weights that the params name, drawn from `seed`.

    Only the part that `params.trainable` names is trained.
    """
    runtime.seed_everything(seed)
    model = GPT(
        GPTConfig(
            vocab_size=vocab_size,
            **params.sizes(),
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
    model.transformer.activation_checkpointing = params.activation_checkpointing
    return model
