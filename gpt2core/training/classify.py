"""Fine-tuning a language model into a classifier of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gpt2core import runtime
from gpt2core.checkpoint.model_dir import load_language_model
from gpt2core.config.finetune_classify import FinetuneClassify
from gpt2core.inference.classify import Texts, encode
from gpt2core.model import GPT, GPTClassifier
from gpt2core.model.lora import merge_lora
from gpt2core.tokenizer import Tokenizer
from gpt2core.training.batches import Batch, epoch_order
from gpt2core.training.cached_features import CachedFeatures
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.optimizers import adamw
from gpt2core.training.resume import ResumableTraining
from gpt2core.training.schedules import WarmupCosine
from gpt2core.training.trainable import add_adapters, freeze_except, frozen_blocks, trainable_parameters
from gpt2core.training.trainer import Step, train

Example = tuple[str, str]  # label, text


@dataclass
class Classified:
    """The classifier, its tokenizer, a row for each epoch (see `COLUMNS`), the test labels before and after, how
    probable each class of each test message is after, [n, classes], and the epoch that the classifier is of."""

    model: GPTClassifier
    tokenizer: Tokenizer
    curve: list[dict[str, float]] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    probabilities: list[list[float]] = field(default_factory=list)
    truncated: int = 0
    trainable_parameters: int = 0
    kept_epoch: int = 0


COLUMNS = ("epoch", "examples", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


def new_classifier(
    base: GPT, labels: tuple[str, ...], trainable: str, seed: int, position: str = "last"
) -> GPTClassifier:
    """The base's transformer under a new head; only the part that `trainable` names will learn.

    Args:
        trainable: head (with the final norm), last_block, last_two_blocks (each with head and final norm), all, or
            lora (the head, and what is added later).
        position: what the head reads: last, first or mean; see `GPTClassifier`.
    """
    runtime.seed_everything(seed)
    device = base.transformer.wte.weight.device
    model = GPTClassifier(base.config, labels, position).to(device)
    model.transformer.load_state_dict(base.transformer.state_dict())
    freeze_except(model, trainable)
    return model


def finetune_classify(
    params: FinetuneClassify,
    seed: int,
    base_dir: Path,
    labels: tuple[str, ...],
    train_examples: Sequence[Example],
    val_examples: Sequence[Example],
    test_examples: Sequence[Example],
    on_metrics: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
    states: CheckpointManager | None = None,
) -> Classified:
    """Fine-tune once, with one seed (of the head's first weights, the order of the data and dropout).

    With `patience_epochs` the weights of the epoch with the lowest validation loss are kept, the first of equals, and
    the training ends after so many epochs without a lower one (Prechelt 1998); else those of the last step are.

    It goes on from the newest of `states`, and is kept there.
    """
    base, tokenizer = load_language_model(base_dir, device=runtime.device(), dropout=params.dropout)
    model = new_classifier(base, labels, params.trainable, seed, params.position)
    if params.trainable == "lora":
        add_adapters(model, params)
    model.transformer.activation_checkpointing = params.activation_checkpointing
    result = Classified(model, tokenizer, trainable_parameters=trainable_parameters(model))
    n_frozen = frozen_blocks(base.config, params.trainable)
    steps_an_epoch = -(-len(train_examples) // params.batch_size)
    max_steps = min(params.epochs * steps_an_epoch, params.max_steps or 1 << 62)
    # With dropout a frozen block gives something else each time; and a part of an epoch does not read all texts.
    keeps = n_frozen > 0 and not params.dropout and max_steps >= steps_an_epoch
    splits: list[tuple[Texts, Tensor]] = []
    for examples in (train_examples, val_examples, test_examples):
        ids, cut = encode([text for _, text in examples], tokenizer, base.config.n_positions, params.max_tokens)
        texts = CachedFeatures(model, ids, n_frozen) if keeps else Texts(model, ids)
        splits.append((texts, torch.tensor([labels.index(label) for label, _ in examples])))
        result.truncated += cut
    (train_texts, train_labels), (val_texts, val_labels), (test_texts, _) = splits

    lengths = train_texts.lengths
    optimizer = adamw(model.parameters(), lr=params.lr, weight_decay=params.weight_decay, beta2=params.beta2)
    schedule = WarmupCosine(params.warmup_steps, max_steps)
    losses: list[float] = []

    def learning() -> dict[str, Tensor]:
        return {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}

    # Of the best epoch so far; nothing where the last one is kept.
    best = {key: tensor.clone() for key, tensor in learning().items()} if params.patience_epochs else {}

    def batches(step: int) -> list[Batch]:
        epoch, number = divmod(step, steps_an_epoch)
        rows = epoch_order(lengths, params.batch_size, seed, epoch)[number]
        return [Batch(train_texts.batch(rows, tokenizer.eot_id), train_labels[rows])]

    def loss_sum(batch: Batch) -> Tensor:
        return F.cross_entropy(train_texts.logits(*batch.inputs).float(), batch.targets, reduction="sum")

    def evaluate(texts: Texts, rows: Sequence[int] | None, targets: Tensor) -> tuple[float, float]:
        logits = texts.predict(rows)
        accuracy = (logits.argmax(-1) == targets).double().mean().item()
        return F.cross_entropy(logits, targets).item(), accuracy

    def on_step(done: Step) -> None:
        losses.append(done.loss)
        progress.update()
        on_metrics({"train_loss": done.loss, "lr": done.lr, "grad_norm": done.grad_norm}, done.step)

    def ends_epoch(step: int) -> bool:
        return step % steps_an_epoch == 0 or step == max_steps

    def on_pause(step: int) -> bool:
        if ends_epoch(step):
            end_epoch(step)
            if best and is_over():
                resume.max_steps = step  # so that this state is the last
        resume.on_pause(step)
        return resume.max_steps == step

    def is_over() -> bool:
        """Whether the patience is at its end."""
        patience = params.patience_epochs
        return patience is not None and result.curve[-1]["epoch"] - result.kept_epoch >= patience

    def end_epoch(step: int) -> None:
        some = np.random.default_rng(seed).permutation(len(lengths))[: len(val_labels)].tolist()
        _, train_accuracy = evaluate(train_texts, some, train_labels[some])
        val_loss, val_accuracy = evaluate(val_texts, None, val_labels)
        row = {
            "epoch": -(-step // steps_an_epoch),
            "examples": min(step * params.batch_size, params.epochs * len(lengths)),
            "train_loss": sum(losses) / len(losses),
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
        losses.clear()
        if best and val_loss < min((earlier["val_loss"] for earlier in result.curve), default=float("inf")):
            result.kept_epoch = int(row["epoch"])
            for key, tensor in learning().items():
                best[key].copy_(tensor)
        result.curve.append(row)
        on_metrics({key: row[key] for key in ("train_accuracy", "val_loss", "val_accuracy")}, step)

    dtype = runtime.training_dtype(params.dtype)
    name = f"classify seed {seed}"
    resume = ResumableTraining(
        states, model, [optimizer], max_steps,
        lambda: {"before": result.before, "curve": result.curve, "losses": losses, "kept_epoch": result.kept_epoch},
        name, best,
    )  # fmt: skip
    if kept := resume.restore():
        result.before, result.curve, losses = kept["before"], kept["curve"], kept["losses"]
        result.kept_epoch = kept["kept_epoch"]
        if result.curve and ends_epoch(resume.step) and is_over():  # it had ended by itself
            max_steps = resume.step
        on_metrics({}, resume.step)  # what belongs to no step is the last one's
    else:
        result.before = [model.labels[i] for i in test_texts.predict().argmax(-1).tolist()]
    with resume, tqdm(total=max_steps, initial=resume.step, desc=name, unit="step", disable=None) as progress:
        train(
            model, [optimizer], schedule, batches, loss_sum,
            max_steps=max_steps, grad_clip=params.grad_clip, start_step=resume.step, dtype=dtype,
            on_step=on_step, is_pause=lambda step: ends_epoch(step) or resume.is_pause(step), on_pause=on_pause,
        )  # fmt: skip
    if best:
        model.load_state_dict(best, strict=False)
    else:
        result.kept_epoch = int(result.curve[-1]["epoch"])
    if params.trainable == "lora":
        merge_lora(model)
    probabilities = test_texts.predict().softmax(-1)  # [n, classes]
    result.after = [model.labels[i] for i in probabilities.argmax(-1).tolist()]
    result.probabilities = probabilities.tolist()
    return result
