"""Fine-tuning a language model to follow instructions (Wei et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gpt2core import prompts, runtime
from gpt2core.checkpoint.model_dir import load_language_model, read_state
from gpt2core.checkpoint.peft_adapter import Adapter, adapter_tensors
from gpt2core.config.finetune_instruct import FinetuneInstruct
from gpt2core.errors import UserError
from gpt2core.inference.respond import respond
from gpt2core.model import GPT
from gpt2core.model.lora import merge_lora
from gpt2core.prompts import Prompt
from gpt2core.tokenizer import Tokenizer
from gpt2core.training.batches import IGNORE, Batch, epoch_order, next_token_batch
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.optimizers import adamw
from gpt2core.training.resume import ResumableTraining
from gpt2core.training.schedules import WarmupCosine
from gpt2core.training.trainable import add_adapters, freeze_except, trainable_parameters
from gpt2core.training.trainer import Step, train

Entry = Mapping[str, Any]  # the texts instruction, input, output


class Example(NamedTuple):
    """Ids of an entry, and at each position the id that should follow, -100 where it does not count."""

    ids: list[int]
    targets: list[int]


class EvalResult(NamedTuple):
    """What the model of so many steps makes of the test set. Losses are nats a token.

    nats: of each entry's reference response, all of its tokens together; none unless `FinetuneInstruct.is_tabled`.
    """

    step: int
    val_loss: float
    test_loss: float
    responses: list[str]
    nats: list[float]


@dataclass
class Instructed:
    """The tuned model, its tokenizer, a row for each epoch (see `COLUMNS`), and the responses to the test set.

    The test losses are of the reference responses, in nats a token of theirs. The model is a plain one; `adapter` is
    what LoRA merged into it, else None. `checkpoints` holds the base first, the tuned model last; `test_tokens` are
    those of each reference response.
    """

    model: GPT
    tokenizer: Tokenizer
    trainable_parameters: int = 0
    adapter: Adapter | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    checkpoints: list[EvalResult] = field(default_factory=list)
    test_tokens: list[int] = field(default_factory=list)
    truncated: int = 0

    @property
    def before(self) -> EvalResult:
        return self.checkpoints[0]

    @property
    def after(self) -> EvalResult:
        return self.checkpoints[-1]


COLUMNS = ("epoch", "examples", "train_loss", "val_loss")


def make_example(
    entry: Entry, tokenizer: Tokenizer, n_positions: int, mask_prompt: bool, form: Prompt = prompts.alpaca
) -> Example:
    """Prompt, response and `<|endoftext|>`, shifted by one into ids and targets; cut to the context.

    With `mask_prompt` only the response (and the end) counts.

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


def batch_loss_sum(model: GPT, batch: Batch) -> Tensor:
    """Cross-entropy in nats, summed over the targets that count."""
    ids, target_positions = batch.inputs
    return model.loss_sum(ids, batch.targets, target_positions)


@torch.inference_mode()
def mean_loss(model: GPT, examples: Sequence[Example], pad_id: int, batch_size: int = 16) -> float:
    """Mean nats a target over all examples."""
    model.eval()
    total, n_targets = 0.0, 0
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    for start in range(0, len(order), batch_size):
        rows = [examples[i] for i in order[start : start + batch_size]]
        batch = next_token_batch([row.ids for row in rows], [row.targets for row in rows], pad_id)
        total += batch_loss_sum(model, batch.to(model.transformer.wte.weight.device)).item()
        n_targets += batch.n_targets
    return total / max(1, n_targets)


def entry_nats(model: GPT, examples: Sequence[Example], pad_id: int) -> list[float]:
    """Of each example by itself, the nats of all its targets together, to six digits."""
    return [round(mean_loss(model, [example], pad_id) * n_target_tokens(example), 6) for example in examples]


def n_target_tokens(example: Example) -> int:
    """The targets that count."""
    return sum(target != IGNORE for target in example.targets)


def finetune_instruct(
    params: FinetuneInstruct,
    seed: int,
    base_dir: Path,
    train_entries: Sequence[Entry],
    val_entries: Sequence[Entry],
    test_entries: Sequence[Entry],
    on_metrics: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
    states: CheckpointManager | None = None,
    before: EvalResult | None = None,
) -> Instructed:
    """Fine-tune, and answer the test set before, after, and after `params.checkpoint_steps`.

    It goes on from the newest of `states`, and is kept there. `before` is what another seed's training found of the
    same base.

    Raises:
        UserError: a prompt fills the context, a checkpoint lies beyond the last step, or a step's loss is not finite.
    """
    frozen_dtype = None if params.lora_base_dtype == "float32" else params.lora_base_dtype
    model, tokenizer = load_language_model(
        base_dir, device=runtime.device(), dropout=params.dropout, frozen_dtype=frozen_dtype
    )
    freeze_except(model, params.trainable)
    model.transformer.activation_checkpointing = params.activation_checkpointing
    runtime.seed_everything(seed)  # LoRA's first weights, dropout
    if params.trainable == "lora":
        add_adapters(model, params)
    result = Instructed(model, tokenizer, trainable_parameters=trainable_parameters(model))
    n_positions, form = model.config.n_positions, prompts.PROMPTS[params.prompt]

    def examples(entries: Sequence[Entry], mask_prompt: bool = params.mask_prompt) -> list[Example]:
        made = [make_example(entry, tokenizer, n_positions, mask_prompt, form) for entry in entries]
        result.truncated += sum(row.targets[-1] != tokenizer.eot_id for row in made)
        return made

    train_examples, val_examples = examples(train_entries), examples(val_entries)
    test_examples = examples(test_entries, mask_prompt=True)
    result.test_tokens = [n_target_tokens(row) for row in test_examples]
    step_size = params.batch_size * params.grad_accum_steps  # entries
    steps_an_epoch = -(-len(train_examples) // step_size)
    max_steps = min(params.epochs * steps_an_epoch, params.max_steps or 1 << 62)
    if late := [step for step in params.checkpoint_steps if step > max_steps]:
        raise UserError(
            f"finetune_instruct.checkpoint_steps: {late[0]} is never reached: the training of {len(train_examples)} "
            f"entries, {step_size} a step, has {max_steps} steps; lower it"
        )
    lengths = [len(example.ids) for example in train_examples]
    optimizer = adamw(model.parameters(), lr=params.lr, weight_decay=params.weight_decay, beta2=params.beta2)
    schedule = WarmupCosine(params.warmup_steps, max_steps)
    losses: list[float] = []

    def batches(step: int) -> list[Batch]:
        epoch, number = divmod(step, steps_an_epoch)
        rows = [train_examples[i] for i in epoch_order(lengths, step_size, seed, epoch)[number]]
        micro_batches = (rows[first : first + params.batch_size] for first in range(0, len(rows), params.batch_size))
        return [
            next_token_batch([row.ids for row in some], [row.targets for row in some], tokenizer.eot_id)
            for some in micro_batches
        ]

    def checkpoint(step: int, val_loss: float | None = None) -> EvalResult:
        if val_loss is None:
            val_loss = mean_loss(model, val_examples, tokenizer.eot_id)
        test_loss = mean_loss(model, test_examples, tokenizer.eot_id)
        nats = entry_nats(model, test_examples, tokenizer.eot_id) if params.is_tabled else []
        # Keys and values of 32 answers of 1558M take 7 GB, which is what rounded weights are to save.
        batch_size = 8 if frozen_dtype else 32
        responses = respond(model, tokenizer, test_entries, params.max_new_tokens, batch_size, form)
        return EvalResult(step, val_loss, test_loss, responses, nats)

    def on_step(done: Step) -> None:
        losses.append(done.loss)
        progress.update()
        on_metrics({"train_loss": done.loss, "lr": done.lr, "grad_norm": done.grad_norm}, done.step)

    def ends_epoch(step: int) -> bool:
        return step % steps_an_epoch == 0 or step == max_steps

    def is_pause(step: int) -> bool:
        return ends_epoch(step) or step in params.checkpoint_steps or resume.is_pause(step)

    def on_pause(step: int) -> None:
        if ends_epoch(step):
            end_epoch(step)
        if step in params.checkpoint_steps and step < max_steps:  # after the last one it is the merged model's
            result.checkpoints.append(found := checkpoint(step))
            on_metrics({"val_loss": found.val_loss, "test_loss": found.test_loss}, step)
        resume.on_pause(step)

    def end_epoch(step: int) -> None:
        row = {
            "epoch": -(-step // steps_an_epoch),
            "examples": min(step * step_size, params.epochs * len(train_examples)),
            "train_loss": sum(losses) / len(losses),
            "val_loss": mean_loss(model, val_examples, tokenizer.eot_id),
        }
        losses.clear()
        result.curve.append(row)
        on_metrics({"val_loss": row["val_loss"]}, step)

    def extra_state() -> dict[str, Any]:
        return {"checkpoints": result.checkpoints, "curve": result.curve, "losses": losses}

    resume = ResumableTraining(states, model, [optimizer], max_steps, extra_state, "instruct")
    if kept := resume.restore():
        result.checkpoints = [EvalResult(*row) for row in kept["checkpoints"]]
        result.curve, losses = kept["curve"], kept["losses"]
        on_metrics({}, resume.step)  # what belongs to no step is the last one's
    else:
        result.checkpoints = [before or checkpoint(0)]
        resume.save_extra_state()  # to answer takes minutes
    with resume, tqdm(total=max_steps, initial=resume.step, desc="instruct", unit="step", disable=None) as progress:
        train(
            model, [optimizer], schedule, batches, lambda batch: batch_loss_sum(model, batch),
            max_steps=max_steps, grad_clip=params.grad_clip, start_step=resume.step,
            dtype=runtime.training_dtype(params.dtype),
            on_step=on_step, is_pause=is_pause, on_pause=on_pause,
        )  # fmt: skip
    if params.trainable == "lora":
        result.adapter = Adapter(
            adapter_tensors(model), params.lora_rank, params.lora_alpha, params.lora_dropout, params.lora_targets
        )
    if result.adapter and not frozen_dtype:  # what is measured is what is kept
        merge_lora(model)
    model.eval()
    result.checkpoints.append(checkpoint(max_steps, result.curve[-1]["val_loss"]))
    if frozen_dtype:  # the merged model may not fit where this one does, so it is not computed with
        merge_lora(model.cpu(), read_state(base_dir)[0])
    return result
