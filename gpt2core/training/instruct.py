"""Fine-tuning a language model to follow instructions (Wei et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpt2core import prompts, runtime
from gpt2core.checkpoint.cluster import batches_of_weights
from gpt2core.checkpoint.model_dir import load_language_model, read_state
from gpt2core.checkpoint.peft_adapter import Adapter, adapter_tensors
from gpt2core.config.finetune_instruct import FinetuneInstruct
from gpt2core.errors import UserError
from gpt2core.inference.respond import respond
from gpt2core.model import GPT
from gpt2core.model.lora import merge_lora
from gpt2core.prompts import Prompt
from gpt2core.tasks.instructions import Splits
from gpt2core.tokenizer import Tokenizer
from gpt2core.training import distributed
from gpt2core.training.batches import IGNORE, Batch, Epochs, chunks, next_token_batch
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.task import Task
from gpt2core.training.trainable import add_adapters, freeze_except, trainable_parameters
from gpt2core.training.trainer import OnMetrics, fit, log_nothing, new_recipe

Entry = Mapping[str, Any]  # the texts instruction, input, output
COLUMNS = ("epoch", "examples", "train_loss", "val_loss")


class Example(NamedTuple):
    """The ids of an entry, and at each position the id that should follow; -100 where none is a target."""

    ids: list[int]
    targets: list[int]

    @property
    def n_target_tokens(self) -> int:
        return sum(target != IGNORE for target in self.targets)


class EvalResult(NamedTuple):
    """The evaluation of the model after `step` steps."""

    step: int  # number of updates; 0: the base
    val_loss: float  # mean nats per target token of the validation entries
    test_loss: float  # mean nats per token of the test entries' reference responses
    responses: list[str]  # the model's response to each test entry
    nats: list[float]  # of each reference response; empty unless `FinetuneInstruct.is_tabled`


@dataclass
class InstructResult:
    """The result of fine-tuning on instructions without the model, values of JSON."""

    trainable_parameters: int = 0  # number of parameters that were trained
    curve: list[dict[str, float]] = field(default_factory=list)  # a row per epoch, with `COLUMNS`
    checkpoints: list[EvalResult] = field(default_factory=list)  # the base first, the tuned model last
    kept_step: int = 0  # the step whose weights the tuned model has
    kept_row: dict[str, float] = field(default_factory=dict)  # the row of `curve` at that step
    test_tokens: list[int] = field(default_factory=list)  # of each reference response of the test entries
    truncated: int = 0  # number of entries that are longer than the context

    @property
    def before(self) -> EvalResult:
        return self.checkpoints[0]

    @property
    def after(self) -> EvalResult:
        return self.checkpoints[-1]


@dataclass(kw_only=True)
class Instructed(InstructResult):
    """The result of fine-tuning on instructions."""

    model: GPT  # LoRA adapters are merged
    tokenizer: Tokenizer
    adapter: Adapter | None = None  # what LoRA merged into the model


class InstructTask(Task):
    """Predict the response after a prompt; evaluated after each epoch and after `checkpoint_steps`."""

    model: GPT

    def __init__(self, model: GPT, tokenizer: Tokenizer, params: FinetuneInstruct, seed: int, splits: Splits) -> None:
        self.params, self.tokenizer = params, tokenizer
        self.test_entries: Sequence[Entry] = splits.test
        self.form, self.n_positions = prompts.PROMPTS[params.prompt], model.config.n_positions
        self.train, self.val = (self.examples(rows, params.mask_prompt) for rows in (splits.train, splits.val))
        self.test = self.examples(splits.test, mask_prompt=True)
        step_size = params.batch_size * params.grad_accum_steps
        lengths = [len(example.ids) for example in self.train]
        self.epochs = Epochs(lengths, step_size, params.epochs, params.max_steps, seed)
        super().__init__("instruct", model, self.epochs.max_steps, seed)
        if late := [step for step in params.checkpoint_steps if step > self.max_steps]:
            raise UserError(
                f"finetune_instruct.checkpoint_steps: {late[0]} is never reached: the training of {len(self.train)} "
                f"entries, {step_size} per step, has {self.max_steps} steps; lower it"
            )
        self.checkpoints: list[EvalResult] = []
        device = model.transformer.wte.weight.device
        self.loss_module = distributed.parallel_loss(model, self.loss_sum, params.sharding, device)

    def batch(self, step: int) -> list[Batch]:
        """Return the entries of a step: ids [B, T], target positions [n], targets [n] each.

        Where there are more processes than entries, a batch has one token without a target.
        """
        rows = self.epochs.rows(step)
        nothing = Example([self.tokenizer.eot_id], [IGNORE])
        return [
            next_token_batch([self.train[rows[i]] for i in part] or [nothing], self.tokenizer.eot_id)
            for part in distributed.local_slices(len(rows), self.params.batch_size)
        ]

    def loss(self, batch: Batch) -> Tensor:
        return self.loss_module(*batch.tensors)

    def loss_sum(self, ids: Tensor, target_positions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch; see `GPT.loss`."""
        return self.model.loss(ids, targets, target_positions, reduction="sum")

    def is_evaluated(self, step: int) -> bool:
        return self.epochs.is_end(step) or step in self.params.checkpoint_steps

    def evaluate(self, step: int) -> dict[str, float]:
        with self.full_model():
            metrics = {"val_loss": self.mean_loss(self.val)}
            if self.epochs.is_end(step):
                self.curve.append({**self.epochs.position(step), "train_loss": self.mean_train_loss(), **metrics})
            # Without early stopping, the last evaluation is that of the merged model.
            is_last = step == self.max_steps and not self.params.patience_evals
            if step in self.params.checkpoint_steps and not is_last:
                self.checkpoints.append(self.eval_result(step, metrics["val_loss"]))
                metrics["test_loss"] = self.checkpoints[-1].test_loss
        return metrics

    def counts_for_patience(self, step: int) -> bool:
        """Return whether an epoch ends: `checkpoint_steps` must not change the training."""
        return self.epochs.is_end(step)

    def evaluate_base(self) -> bool:
        if not self.checkpoints:  # another seed's training may have evaluated the same base
            with self.full_model():
                self.checkpoints = [self.eval_result(0, self.mean_loss(self.val))]
        return True

    def eval_result(self, step: int, val_loss: float) -> EvalResult:
        """Return the evaluation on the test entries: losses and responses."""
        test_loss, nats = self.mean_loss(self.test), []
        if self.params.is_tabled:
            nats = distributed.each_part(self.test, lambda part: entry_nats(self.model, part, self.tokenizer.eot_id))
        # Keys and values of 32 responses of 1558M take 7 GB, the memory that quantized weights save.
        batch_size = 8 if self.params.frozen_dtype else 32
        max_new_tokens = self.params.max_new_tokens

        def answers(entries: Sequence[Entry]) -> list[str]:
            with batches_of_weights(self.model, self.tokenizer) as batches:
                return respond(
                    self.model, self.tokenizer, entries, max_new_tokens, batch_size, self.form, batches=batches
                )

        return EvalResult(step, val_loss, test_loss, distributed.each_part(self.test_entries, answers), nats)

    def mean_loss(self, examples: Sequence[Example]) -> float:
        """Return the mean loss of all targets of the examples, in nats."""
        sums = distributed.each_part(examples, lambda part: [loss_sum(self.model, part, self.tokenizer.eot_id)])
        return sum(nats for nats, _ in sums) / max(1, sum(n_targets for _, n_targets in sums))

    def examples(self, entries: Sequence[Entry], mask_prompt: bool) -> list[Example]:
        """Return the examples of some entries."""
        return [make_example(entry, self.tokenizer, self.n_positions, mask_prompt, self.form) for entry in entries]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "checkpoints": self.checkpoints}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.checkpoints = [EvalResult(*row) for row in state["checkpoints"]]


def finetune_instruct(
    params: FinetuneInstruct,
    seed: int,
    base_dir: Path,
    splits: Splits,
    on_metrics: OnMetrics = log_nothing,
    checkpoints: CheckpointManager | None = None,
    before: EvalResult | None = None,
) -> Instructed:
    """Fine-tune on instructions, and respond to the test entries before, after, and after `params.checkpoint_steps`.

    The seed is that of LoRA's initial weights, the order of the data, and dropout. `before` is the evaluation of the
    same base by another seed's training; see `fit` for `on_metrics` and `checkpoints`. If torchrun started several
    processes, all of them train it together, in a `distributed.process_group`.

    Raises:
        UserError: a prompt fills the context, a checkpoint step is never reached, or a step's loss is not finite.
    """
    model, tokenizer = load_language_model(
        base_dir, device=runtime.device(), dropout=params.dropout, frozen_dtype=params.frozen_dtype
    )
    freeze_except(model, params.trainable)
    runtime.seed_everything(seed)
    if params.trainable == "lora":
        add_adapters(model, params)
    model.transformer.activation_checkpointing = params.activation_checkpointing
    result = Instructed(model=model, tokenizer=tokenizer, trainable_parameters=trainable_parameters(model))

    task = InstructTask(model, tokenizer, params, seed, splits)
    task.checkpoints = [before] if before else []
    recipe = new_recipe(params, model, task.max_steps, runtime.training_dtype(params.dtype))
    kept_step = fit(task, recipe, checkpoints, on_metrics)

    task.use_model(distributed.full_model(task.loss_module, on_all=True))
    result.model = model = task.model
    if params.trainable == "lora":
        result.adapter = Adapter(
            adapter_tensors(model), params.lora_rank, params.lora_alpha, params.lora_dropout, params.lora_targets
        )
    if result.adapter and not params.frozen_dtype:  # the model that is evaluated is the one that is saved
        merge_lora(model)
    model.eval()
    result.kept_step = kept_step
    result.kept_row = task.curve[int(task.epochs.position(kept_step)["epoch"]) - 1]
    earlier = [checkpoint for checkpoint in task.checkpoints if checkpoint.step != kept_step]
    result.checkpoints = [*earlier, task.eval_result(kept_step, result.kept_row["val_loss"])]
    if params.frozen_dtype:  # the merged model may not fit in memory where this one does, so it is not evaluated
        merge_lora(model.cpu(), read_state(base_dir)[0])
    result.curve = task.curve
    result.test_tokens = [example.n_target_tokens for example in task.test]
    all_examples = (*task.train, *task.val, *task.test)
    result.truncated = sum(example.targets[-1] != tokenizer.eot_id for example in all_examples)
    return result


def make_example(
    entry: Entry, tokenizer: Tokenizer, n_positions: int, mask_prompt: bool, form: Prompt = prompts.alpaca
) -> Example:
    """Return prompt, response, and `<|endoftext|>`, shifted by one into ids and targets; truncated to the context.

    With `mask_prompt` only the response and the end are targets.

    Raises:
        UserError: the prompt alone fills the context.
    """
    prompt = tokenizer.encode(form(entry["instruction"], entry["input"]))
    if len(prompt) >= n_positions:
        raise UserError(
            f"the entry with instruction {entry['instruction'][:60]!r} has a prompt of {len(prompt)} tokens; with its "
            f"response it must fit the model's {n_positions}: shorten it or take a base with a longer context"
        )
    ids = [*prompt, *tokenizer.encode(entry["output"]), tokenizer.eot_id][: n_positions + 1]
    targets = ids[1:]
    if mask_prompt:
        targets = [IGNORE] * (len(prompt) - 1) + targets[len(prompt) - 1 :]
    return Example(ids[:-1], targets)


def batch_loss(model: GPT, batch: Batch) -> Tensor:
    """Return the cross-entropy of a masked batch in nats, summed over its targets: []."""
    ids, target_positions = batch.inputs
    return model.loss(ids, batch.targets, target_positions, reduction="sum")


def entry_nats(model: GPT, examples: Sequence[Example], pad_id: int) -> list[float]:
    """Return the loss of each example in nats, summed over its targets, to six digits."""
    return [round(mean_loss(model, [example], pad_id) * example.n_target_tokens, 6) for example in examples]


def mean_loss(model: GPT, examples: Sequence[Example], pad_id: int, batch_size: int = 16) -> float:
    """Return the mean loss of all targets of the examples, in nats."""
    nats, n_targets = loss_sum(model, examples, pad_id, batch_size)
    return nats / max(1, n_targets)


@torch.inference_mode()
def loss_sum(model: GPT, examples: Sequence[Example], pad_id: int, batch_size: int = 16) -> tuple[float, int]:
    """Return the loss of the examples in nats, summed over their targets, and the number of targets."""
    model.eval()
    device = model.transformer.wte.weight.device
    nats, n_targets = 0.0, 0
    for rows in chunks(sorted(examples, key=lambda example: len(example.ids)), batch_size):
        batch = next_token_batch(rows, pad_id)
        nats += batch_loss(model, batch.to(device)).item()
        n_targets += batch.n_targets
    return nats, n_targets
