"""Fine-tuning a language model into a classifier of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core import environment, numerics, runtime
from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.config.finetune_classify import FinetuneClassify
from gpt2core.executor import open_executor, report
from gpt2core.inference.classify import Texts, encode
from gpt2core.model import GPT, GPTClassifier
from gpt2core.model.lora import merge_lora
from gpt2core.tasks.labeled_texts import Message, Splits, classes, split
from gpt2core.tokenizer import Tokenizer
from gpt2core.training import distributed
from gpt2core.training.batches import Batch, Epochs
from gpt2core.training.cached_features import CachedFeatures
from gpt2core.training.checkpoints import NO_CHECKPOINTS, CheckpointManager, StageCheckpoints
from gpt2core.training.task import Task
from gpt2core.training.trainable import add_adapters, freeze_except, frozen_blocks, trainable_parameters
from gpt2core.training.trainer import OnMetrics, fit, log_nothing, new_recipe

SPLITS = ("train", "val", "test")
COLUMNS = ("epoch", "examples", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


@dataclass
class ClassifyResult:
    """The result of fine-tuning a classifier without the model, values of JSON."""

    curve: list[dict[str, float]] = field(default_factory=list)  # a row per epoch, with `COLUMNS`
    before: list[str] = field(default_factory=list)  # the predicted label of each test text before the training
    after: list[str] = field(default_factory=list)  # the same after it
    probabilities: list[list[float]] = field(default_factory=list)  # [n, classes] of the test texts, after it
    truncated: int = 0  # number of texts that are longer than the model reads
    trainable_parameters: int = 0  # number of parameters that were trained
    kept_epoch: int = 0  # the epoch whose weights the model has
    accuracy: dict[str, float] = field(default_factory=dict)  # of all splits before and after, if asked for


@dataclass(kw_only=True)
class Classified(ClassifyResult):
    """The result of fine-tuning a classifier."""

    model: GPTClassifier  # LoRA adapters are merged
    tokenizer: Tokenizer


class ClassifyTask(Task):
    """Predict the label of a text; evaluated after each epoch."""

    model: GPTClassifier

    def __init__(
        self,
        model: GPTClassifier,
        tokenizer: Tokenizer,
        params: FinetuneClassify,
        seed: int,
        splits: Splits,
        has_all_accuracies: bool = False,
    ) -> None:
        texts = [[text for _, text in rows] for rows in splits]  # of training, validation, and test
        is_padded, n_positions = params.position == "padded", model.config.n_positions
        encoded = [encode(rows, tokenizer, n_positions, params.max_tokens, is_padded=is_padded) for rows in texts]
        self.truncated = sum(n_truncated for _, n_truncated in encoded)
        ids = [rows for rows, _ in encoded]
        step_size = params.batch_size * params.grad_accum_steps
        self.epochs = Epochs([len(row) for row in ids[0]], step_size, params.epochs, params.max_steps, seed)
        super().__init__(f"classify seed {seed}", model, self.epochs.max_steps, seed)
        self.params, self.eot_id = params, tokenizer.eot_id
        # The hidden states after the frozen blocks are computed once, unless dropout changes them each time, or the
        # training does not read all texts.
        n_frozen = frozen_blocks(model.config, params.trainable)
        is_cached = n_frozen > 0 and not params.dropout and self.max_steps >= self.epochs.steps_per_epoch
        self.texts = [CachedFeatures(model, rows, n_frozen) if is_cached else Texts(model, rows) for rows in ids]
        self.labels = [torch.tensor([model.labels.index(label) for label, _ in rows]) for rows in splits]
        self.before: list[str] = []
        # A training of less than an epoch, as in a test, is shorter than the evaluation of all texts would be.
        self.has_all_accuracies = has_all_accuracies and self.max_steps >= self.epochs.steps_per_epoch
        self.accuracy_before: dict[str, float] = {}
        self.loss_module = distributed.parallel_loss(model, self.loss_sum, params.sharding, model.score.weight.device)

    def batch(self, step: int) -> list[Batch]:
        """Return the texts of a step: ids [B, T] (or cached hidden states [B, T, C]), lengths [B], labels [B] each.

        Where there are more processes than texts, a batch has a text without a label.
        """
        rows = self.epochs.rows(step)
        parts = [[rows[i] for i in part] for part in distributed.local_slices(len(rows), self.params.batch_size)]
        return [Batch(self.texts[0].batch(part or rows[:1], self.eot_id), self.labels[0][part]) for part in parts]

    def loss(self, batch: Batch) -> Tensor:
        return self.loss_module(*batch.tensors)

    def loss_sum(self, ids: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch: ids [B, T] or hidden states [B, T, C], lengths [B], labels [B] -> []."""
        logits = self.texts[0].logits(ids, lengths).float()  # [B, classes]
        return F.cross_entropy(logits[: len(labels)], labels, reduction="sum")

    def use_model(self, model: GPTClassifier) -> None:
        super().use_model(model)
        for texts in self.texts:
            texts.model = model

    def is_evaluated(self, step: int) -> bool:
        return self.epochs.is_end(step)

    def evaluate(self, step: int) -> dict[str, float]:
        n_train, n_val = len(self.labels[0]), len(self.labels[1])
        sample = np.random.default_rng(self.seed).permutation(n_train)[:n_val].tolist()
        with self.full_model():
            _, train_accuracy = self.loss_and_accuracy(0, sample)
            val_loss, val_accuracy = self.loss_and_accuracy(1, range(n_val))
        metrics = {"train_accuracy": train_accuracy, "val_loss": val_loss, "val_accuracy": val_accuracy}
        self.curve.append({**self.epochs.position(step), "train_loss": self.mean_train_loss(), **metrics})
        return metrics

    def evaluate_base(self) -> bool:
        with self.full_model():
            self.before = self.predicted(self.logits(2))
            self.accuracy_before = self.accuracies() if self.has_all_accuracies else {}
        return self.has_all_accuracies

    def logits(self, split: int, rows: Sequence[int] | None = None) -> Tensor:
        """Return the logits [n, classes] of some rows of a split; None: of all."""
        rows = range(len(self.labels[split])) if rows is None else rows
        logits = distributed.each_part(rows, lambda part: self.texts[split].predict(part).tolist())
        return torch.tensor(logits).view(-1, len(self.model.labels))

    def accuracies(self) -> dict[str, float]:
        """Return the share of correct labels of each split."""
        return {
            name: self.loss_and_accuracy(split, range(len(self.labels[split])))[1] for split, name in enumerate(SPLITS)
        }

    def loss_and_accuracy(self, split: int, rows: Sequence[int]) -> tuple[float, float]:
        """Return the mean loss in nats per text, and the share of correct labels, of some rows of a split."""
        logits, labels = self.logits(split, rows), self.labels[split][list(rows)]  # [n, classes], [n]
        accuracy = (logits.argmax(-1) == labels).double().mean().item()
        return F.cross_entropy(logits, labels).item(), accuracy

    def predicted(self, logits: Tensor) -> list[str]:
        """Return the most probable label of each row: [n, classes] -> [n]."""
        return [self.model.labels[i] for i in logits.argmax(-1).tolist()]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "before": self.before, "accuracy_before": self.accuracy_before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.before, self.accuracy_before = state["before"], state["accuracy_before"]


def finetune_classify(
    params: FinetuneClassify,
    seed: int,
    base_dir: Path,
    labels: tuple[str, ...],
    splits: Splits,
    on_metrics: OnMetrics = log_nothing,
    checkpoints: CheckpointManager | None = None,
    *,
    has_all_accuracies: bool = False,
) -> Classified:
    """Fine-tune a classifier once, from the language model in `base_dir`; see `fit` for the metrics and checkpoints.

    If torchrun started several processes, all of them train it together, in a `distributed.process_group`.

    The seed is that of the head's initial weights, the order of the data, and dropout. With `has_all_accuracies`, all
    splits are classified before and after a training of at least one epoch, not the test split alone.

    Raises:
        UserError: the base is no language model, or the loss is not finite.
    """
    base, tokenizer = load_language_model(base_dir, device=runtime.device(), dropout=params.dropout)
    padded_length = min(params.max_tokens or 0, base.config.n_positions) if params.position == "padded" else None
    model = new_classifier(base, labels, params.trainable, seed, params.position, padded_length)
    if params.trainable == "lora":
        add_adapters(model, params)
    model.transformer.activation_checkpointing = params.activation_checkpointing
    result = Classified(model=model, tokenizer=tokenizer, trainable_parameters=trainable_parameters(model))

    task = ClassifyTask(model, tokenizer, params, seed, splits, has_all_accuracies)
    recipe = new_recipe(params, model, task.max_steps, runtime.training_dtype(params.dtype))
    kept_step = fit(task, recipe, checkpoints, on_metrics)

    task.use_model(distributed.full_model(task.loss_module, on_all=True))
    result.model = task.model
    if params.trainable == "lora":
        merge_lora(task.model)
    logits = task.logits(2)  # [n, classes]
    result.curve, result.truncated = task.curve, task.truncated
    result.kept_epoch = int(task.epochs.position(kept_step)["epoch"])
    result.before, result.after = task.before, task.predicted(logits)
    result.probabilities = logits.softmax(-1).tolist()
    if task.has_all_accuracies:
        before = {f"before_{name}_accuracy": value for name, value in task.accuracy_before.items()}
        result.accuracy = before | {f"{name}_accuracy": value for name, value in task.accuracies().items()}
    return result


def finetune_seeds(
    params: FinetuneClassify,
    messages: Sequence[Message],
    base_dir: Path,
    model_dir: Path | None = None,
    on_metrics: OnMetrics = log_nothing,
    checkpoints: StageCheckpoints = NO_CHECKPOINTS,
) -> Iterator[tuple[int, Splits, ClassifyResult]]:
    """Fine-tune with each of `params.seeds`, on Ray several at a time; yield it, its splits, and the result.

    Only the first seed's curve is logged, and only its model is saved, in `model_dir`. Of several processes that
    torchrun started, only the first one saves.
    """
    all_splits = {
        seed: split(
            messages, params.val_fraction, params.test_fraction, seed,
            balance=params.balance, drop_duplicates=params.drop_duplicates,
        )
        for seed in params.seeds
    }  # fmt: skip
    common = [params.model_dump_json(), str(base_dir), classes(messages), checkpoints.location]
    tasks = (
        [*common, seed, splits, number == 0, str(model_dir or "")]
        for number, (seed, splits) in enumerate(all_splits.items())
    )
    with open_executor(None if len(params.seeds) > 1 else 1, with_model=True) as executor:
        for (seed, splits), result in zip(all_splits.items(), executor.map(_seed, tasks, on_metrics), strict=True):
            yield seed, splits, ClassifyResult(**result)


def _seed(
    params: str, base_dir: str, labels: Sequence[str], checkpoints: Sequence[str],
    seed: int, splits: Sequence[Sequence[tuple[str, str]]], is_first: bool, model_dir: str,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune with a seed, here or in a process of Ray; return the `ClassifyResult` as values of JSON."""
    numerics.start(environment.prepared_mode() or "native")
    result = finetune_classify(
        FinetuneClassify.model_validate_json(params), seed, Path(base_dir), tuple(labels),
        Splits(*([Message(*row) for row in rows] for rows in splits)),
        report if is_first else log_nothing,
        StageCheckpoints.at(checkpoints).training(f"seed-{seed}"),
        has_all_accuracies=is_first,
    )  # fmt: skip
    if is_first and model_dir:
        save_model(model_dir, result.model, result.tokenizer)
    return {each.name: getattr(result, each.name) for each in fields(ClassifyResult)}


def new_classifier(
    base: GPT,
    labels: tuple[str, ...],
    trainable: str,
    seed: int,
    position: str = "last",
    padded_length: int | None = None,
) -> GPTClassifier:
    """Return the base's transformer with a new head, drawn from `seed`; see `freeze_except` and `GPTClassifier`."""
    runtime.seed_everything(seed)
    model = GPTClassifier(base.config, labels, position, padded_length).to(base.transformer.wte.weight.device)
    model.transformer.load_state_dict(base.transformer.state_dict())
    freeze_except(model, trainable)
    return model
