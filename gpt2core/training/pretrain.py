"""Pretraining: a GPT-2, new or one that exists, learns to predict the next token of token shards."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from gpt2core import runtime
from gpt2core.config.pretrain import Pretrain
from gpt2core.corpus.shards import Shard
from gpt2core.errors import UserError
from gpt2core.inference import generate
from gpt2core.model import GPT, GPTConfig
from gpt2core.model.grow import grow
from gpt2core.model.induction import write_induction_circuit
from gpt2core.tokenizer import Tokenizer
from gpt2core.training import distributed
from gpt2core.training.batches import Batch, WindowSampler
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.task import Step, Task
from gpt2core.training.trainable import freeze_except
from gpt2core.training.trainer import OnMetrics, fit, log_nothing, new_recipe

COLUMNS = (
    "tokens", "step", "train_loss", "val_loss", "val_perplexity", "val_bits_per_byte", "lr", "grad_norm",
)  # fmt: skip
PHASES = ("pretrain", "pretrain-continued")  # the trainings on the first corpus and on the second

T = TypeVar("T")
OnModel = Callable[[GPT, int], object]  # the model in eval mode and the step


def ignore_model(model: GPT, step: int) -> None:
    """Do nothing with a model."""


class Corpus(NamedTuple):
    """The shards of a corpus, and where the training on it is saved (None: nowhere)."""

    train: Shard
    val: Shard
    checkpoints: CheckpointManager | None = None


@dataclass
class Pretrained:
    """The result of pretraining. Steps and tokens of a continued training count on."""

    model: GPT  # of several processes, only the first one has its weights
    curve: list[dict[str, float]] = field(default_factory=list)  # a row per evaluation, with `COLUMNS`
    samples: list[dict[str, Any]] = field(default_factory=list)  # of text at each evaluation; the last is by `model`
    kept_step: int = 0  # the step whose weights `model` has
    start_val_loss: float | None = None  # of the last corpus, before the training on it; None: of random weights

    @property
    def kept_row(self) -> dict[str, float]:
        """The row of `curve` at `kept_step`."""
        return next(row for row in self.curve if row["step"] == self.kept_step)

    def metrics(self, params: Pretrain) -> dict[str, float]:
        """Return the training's part of the stage's metrics."""
        found = {"train_loss": round(self.kept_row["train_loss"], 6)}
        if self.start_val_loss is not None:  # of the same windows before the training and after it
            found["start_val_loss"] = round(self.start_val_loss, 6)
            found["end_val_loss"] = round(self.kept_row["val_loss"], 6)
        if params.patience_evals:
            found["kept_step"] = self.kept_step
        return found | {"parameters": sum(parameter.numel() for parameter in self.model.parameters())}


class PretrainTask(Task):
    """Predict the next token of windows of a shard; the validation loss is of the same windows each time."""

    model: GPT

    def __init__(
        self,
        name: str,
        params: Pretrain,
        seed: int,
        model: GPT,
        loss_module: nn.Module,
        corpus: Corpus,
        tokenizer: Tokenizer,
        tokens_seen: int = 0,
    ) -> None:
        super().__init__(name, model, params.max_steps, seed)
        self.params, self.tokenizer, self.loss_module = params, tokenizer, loss_module
        self.device, self.dtype = runtime.device(), runtime.training_dtype(params.dtype)
        self.sampler = WindowSampler(corpus.train.tokens, params.context, seed, "training split")
        val_context = max(1, min(params.context, corpus.val.n_tokens - 1))
        self.val_sampler = WindowSampler(corpus.val.tokens, val_context, seed, "validation split")
        self.bits_per_byte_per_nat = corpus.val.n_tokens / corpus.val.n_bytes / math.log(2)
        self.samples: list[dict[str, Any]] = []
        self.tokens_seen = tokens_seen
        self.on_model: OnModel = ignore_model

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
        full_model = distributed.full_model(self.loss_module)
        if distributed.rank() == 0:
            self.samples.append({"tokens": self.tokens_seen, "text": self.sample(full_model)})
            self.on_model(full_model, step)
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
    corpora: Sequence[Corpus],
    tokenizer: Tokenizer,
    on_metrics: OnMetrics = log_nothing,
    base: GPT | None = None,
    on_model: OnModel = ignore_model,
) -> Pretrained:
    """Train a model; if torchrun started several processes, all of them train it together.

    Args:
        params: sizes, schedule, and precision.
        seed: of random weights, the order of the data, and dropout.
        corpora: one, or with `continued_steps` two: the model is trained on one after the other.
        tokenizer: for the samples.
        on_metrics: called with metrics and their step.
        base: the model to start with, which is changed in place; None: random weights.
        on_model: called in the first process with the model at each evaluation, and its step.

    Raises:
        UserError: a split is shorter than one context, the processes do not divide a step, the base has fewer positions
            than the context, or the loss is not finite.
    """
    if problem := params.undivided(distributed.world_size()):
        raise UserError(problem)
    model = new_model(params, tokenizer.vocab_size, seed, base)
    loss = functools.partial(model.loss, reduction="sum")
    loss_module = distributed.parallel_loss(model, loss, params.sharding, runtime.device())
    result = Pretrained(model)
    tokens_seen = first_step = 0
    for (name, of_phase), corpus in zip(_phases(params), corpora, strict=True):
        task = PretrainTask(name, of_phase, seed, model, loss_module, corpus, tokenizer, tokens_seen)
        task.on_model = _after(first_step, on_model)
        is_trained = base is not None or first_step > 0
        result.start_val_loss = task.val_loss() if is_trained else None
        recipe = new_recipe(of_phase, model, task.max_steps, task.dtype)
        kept_step = fit(task, recipe, corpus.checkpoints, _after(first_step, on_metrics))
        result.kept_step = first_step + kept_step
        result.curve += [{**row, "step": first_step + row["step"]} for row in task.curve]
        result.samples += task.samples
        tokens_seen, first_step = task.tokens_seen, first_step + task.max_steps
    result.model = distributed.full_model(loss_module).eval()
    if result.samples and result.kept_row is not result.curve[-1]:
        result.samples.append(next(row for row in result.samples if row["tokens"] == result.kept_row["tokens"]))
    return result


def _phases(params: Pretrain) -> Iterator[tuple[str, Pretrain]]:
    """Yield name and params of the training on each corpus; the second has a schedule of its own."""
    yield PHASES[0], params
    if params.continued_steps is not None:
        changes = {
            "max_steps": params.continued_steps,
            "warmup_steps": min(params.warmup_steps, params.continued_steps // 10),
            "lr": params.lr * params.continued_lr_ratio,
            "muon_lr": params.muon_lr * params.continued_lr_ratio,
        }
        yield PHASES[1], params.model_copy(update=changes)


def _after(first_step: int, callback: Callable[[T, int], object]) -> Callable[[T, int], None]:
    def called(value: T, step: int) -> None:
        callback(value, first_step + step)

    return called


def new_model(params: Pretrain, vocab_size: int, seed: int, base: GPT | None = None) -> GPT:
    """Return the model to train: the base, or random weights that are drawn from `seed`.

    A base with fewer positions than `n_positions`, or with fewer tokens than the tokenizer, grows. Only the part that
    `params.trainable` names is trained.

    Raises:
        UserError: the base has more positions than `n_positions`, or fewer than the context.
    """
    runtime.seed_everything(seed)
    if base is None:
        model = _random_model(params, vocab_size)
    else:
        model = grow(base, n_positions=params.n_positions, vocab_size=max(vocab_size, base.config.vocab_size))
        if params.context > model.config.n_positions:
            raise UserError(
                f"pretrain.context: {params.context} tokens are more than the {model.config.n_positions} positions of "
                f"pretrain.base {params.base!r}; lower it, or set pretrain.n_positions, which adds positions"
            )
    freeze_except(model, params.trainable)
    model.transformer.activation_checkpointing = params.activation_checkpointing
    return model


def _random_model(params: Pretrain, vocab_size: int) -> GPT:
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
    return model
