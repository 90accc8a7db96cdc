"""Fine-tuning on instructions with several seeds: metrics and responses of all, the model of the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt2core import files
from gpt2core.config.finetune_instruct import FinetuneInstruct
from gpt2core.tasks.instructions import Splits
from gpt2core.training.checkpoints import NO_CHECKPOINTS, StageCheckpoints
from gpt2core.training.instruct import EvalResult, Instructed, finetune_instruct
from gpt2core.training.trainer import OnMetrics, log_nothing


def finetune_seeds(
    params: FinetuneInstruct,
    seeds: Sequence[int],
    base_dir: Path,
    splits: Splits,
    on_metrics: OnMetrics = log_nothing,
    checkpoints: StageCheckpoints = NO_CHECKPOINTS,
) -> Iterator[tuple[int, Instructed]]:
    """Fine-tune with each seed; yield it and the result. Only the curve of the first one is logged."""
    before: EvalResult | None = None  # the evaluation of the base
    for seed in seeds:
        training = checkpoints.training(f"seed-{seed}")
        result = finetune_instruct(
            params, seed, base_dir, splits, on_metrics if seed == seeds[0] else log_nothing, training, before
        )
        before = result.before
        yield seed, result
        del result  # its model makes room for the next one's


class InstructSeeds:
    """The results of the trainings, added one after another, without the models."""

    def __init__(self, params: FinetuneInstruct, splits: Splits) -> None:
        self.before: EvalResult | None = None  # the evaluation of the base; None until a training is added
        self.metrics: dict[str, Any] = {}  # of the first seed, losses in nats per token; of several also by seed
        self._params, self._splits = params, splits
        self._answered: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []  # an evaluation each
        self._test_tokens: list[int] = []

    def add(self, seed: int, result: Instructed) -> None:
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


def _metrics(result: Instructed, splits: Splits) -> dict[str, Any]:
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
