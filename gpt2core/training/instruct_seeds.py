"""Fine-tuning on instructions with several seeds: metrics and responses of all, the model of the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gpt2core import environment, files, numerics
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.checkpoint.peft_adapter import save_adapter
from gpt2core.config.finetune_instruct import FinetuneInstruct
from gpt2core.executor import open_executor, report
from gpt2core.prompts import PROMPTS, chat_template
from gpt2core.tasks.instructions import Splits
from gpt2core.training.checkpoints import NO_CHECKPOINTS, StageCheckpoints
from gpt2core.training.instruct import EvalResult, InstructResult, finetune_instruct
from gpt2core.training.trainer import OnMetrics, log_nothing


def finetune_seeds(
    params: FinetuneInstruct,
    seeds: Sequence[int],
    base_dir: Path,
    splits: Splits,
    out_dirs: tuple[Path, Path] | None = None,
    on_metrics: OnMetrics = log_nothing,
    checkpoints: StageCheckpoints = NO_CHECKPOINTS,
) -> Iterator[tuple[int, InstructResult]]:
    """Fine-tune with each seed, on Ray several at a time; yield it and the result.

    Only the first seed's curve is logged, and only its model and its adapter are saved, in `out_dirs`. Of several
    processes that torchrun started, only the first one saves.
    """
    common = [params.model_dump_json(), str(base_dir), splits, checkpoints.location]
    before: EvalResult | None = None  # the evaluation of the base, if a training that has ended has computed it

    def tasks() -> Iterator[list[Any]]:
        for number, seed in enumerate(seeds):
            yield [*common, seed, before, number == 0, [str(path) for path in out_dirs or ()]]

    with open_executor(None if len(seeds) > 1 else 1, with_model=True) as executor:
        for seed, values in zip(seeds, executor.map(_seed, tasks(), on_metrics), strict=True):
            result = InstructResult(**values)
            result.checkpoints = [EvalResult(*row) for row in values["checkpoints"]]
            before = result.before
            yield seed, result


def _seed(
    params: str, base_dir: str, splits: Sequence[Any], checkpoints: Sequence[str],
    seed: int, before: Sequence[Any] | None, is_first: bool, out_dirs: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune with a seed, here or in a process of Ray; return the `InstructResult` as values of JSON."""
    numerics.start(environment.prepared_mode() or "native")
    section = FinetuneInstruct.model_validate_json(params)
    result = finetune_instruct(
        section, seed, Path(base_dir), Splits(*splits), report if is_first else log_nothing,
        StageCheckpoints.at(checkpoints).training(f"seed-{seed}"),
        EvalResult(*before) if before else None,
    )  # fmt: skip
    if is_first and out_dirs:
        model_dir, adapter_dir = out_dirs
        save_model(model_dir, result.model, result.tokenizer, chat_template=chat_template(PROMPTS[section.prompt]))
        save_adapter(adapter_dir, result.adapter, Path(base_dir).as_posix())
    return {each.name: getattr(result, each.name) for each in fields(InstructResult)}


class InstructSeeds:
    """The results of the trainings, added one after another, without the models."""

    def __init__(self, params: FinetuneInstruct, splits: Splits) -> None:
        self.before: EvalResult | None = None  # the evaluation of the base; None until a training is added
        self.metrics: dict[str, Any] = {}  # of the first seed, losses in nats per token; of several also by seed
        self._params, self._splits = params, splits
        self._answered: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []  # an evaluation each
        self._test_tokens: list[int] = []

    def add(self, seed: int, result: InstructResult) -> None:
        """Add the result of a seed."""
        if self.before is None:
            self.before = result.before
            self.metrics = _metrics(result, self._splits)
            if self._params.patience_evals:
                self.metrics["kept_step"] = result.kept_step
            self._answered = [
                {**entry, "response": response, "base_response": base_response}
                for entry, response, base_response in zip(
                    self._splits.test, result.after.responses, result.before.responses, strict=True
                )
            ]
            self._rows = [{"seed": None, **result.before._asdict()}]
            self._test_tokens = result.test_tokens
        self._rows += [{"seed": seed, **checkpoint._asdict()} for checkpoint in result.checkpoints[1:]]
        if self._params.seeds:
            for name in ("val_loss", "test_loss"):
                self.metrics.setdefault(f"{name}_by_seed", {})[str(seed)] = round(getattr(result.after, name), 6)

    def write(self, out_dir: Path) -> None:
        """Write the test entries with the first seed's responses, and the training entries.

        With several seeds or checkpoints, also write the evaluation of each.
        """
        with files.atomic_dir(out_dir) as folder:
            files.write_json(folder / "test.json", self._answered)
            files.write_json(folder / "train.json", self._splits.train)
            if self._params.is_tabled:
                files.write_json(
                    folder / "checkpoints.json", {"test_tokens": self._test_tokens, "checkpoints": self._rows}
                )


def _metrics(result: InstructResult, splits: Splits) -> dict[str, Any]:
    before, after = result.before, result.after
    return {
        "val_loss": round(after.val_loss, 6),
        "before_val_loss": round(before.val_loss, 6),
        "train_loss": round(result.kept_row["train_loss"], 6),
        "train_entries": len(splits.train),
        "val_entries": len(splits.val),
        "test_entries": len(splits.test),
        "truncated_entries": result.truncated,
        "test_loss": round(after.test_loss, 6),
        "before_test_loss": round(before.test_loss, 6),
        "test_perplexity": round(math.exp(after.test_loss), 6),
        "before_test_perplexity": round(math.exp(before.test_loss), 6),
        "trainable_parameters": result.trainable_parameters,
    }
