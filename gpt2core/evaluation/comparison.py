"""Several models' answers to one test set in one table: the seeds and checkpoints of a training, or directories.

All answer the same entries, so the table also has the differences to one of the models, entry by entry: their intervals
are narrower than those of the figures, since what is hard for one model is hard for the others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.evaluation.judges import Judge
from gpt2core.evaluation.llm_judge_eval import Entry, items
from gpt2core.evaluation.metrics.intervals import (
    bootstrap_interval,
    bootstrap_ratio_interval,
    drop_missing,
    mean,
    mean_std_ci,
)

_DIGITS = 4  # of every number that is written: more would differ between machines
_REMEDY = "write it again with: dvc repro finetune-instruct"


class Answers(NamedTuple):
    """What a model makes of the test set.

    Args:
        name: of the model, or of its checkpoint.
        nats: of each entry's reference response, all of its tokens together.
        responses: its own.
        seed: of the training of which this is the end; None: it is a base, a checkpoint on the way, or has none.
    """

    name: str
    nats: Sequence[float]
    responses: Sequence[str]
    seed: int | None = None


class Figure(NamedTuple):
    """A figure and its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def shown(self, digits: int) -> str:
        """
        >>> Figure(61.42, 55.25, 67.0).shown(1)
        '61.4 (55.2 to 67.0)'
        """
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


class Row(NamedTuple):
    """A model's figures; the differences are its own less those of the table's reference, None in that one's row.

    loss: nats a token of the reference responses. score: None where the judge could score nothing.
    """

    answers: Answers
    loss: Figure
    perplexity: Figure
    score: Figure | None
    loss_difference: Figure | None
    score_difference: Figure | None

    def metrics(self) -> dict[str, float]:
        """`loss`, `loss_ci_low`, `loss_ci_high` and so on."""
        return {
            f"{name}{end}": round(number, _DIGITS)
            for name in self._fields[1:]
            if (figure := getattr(self, name)) is not None
            for end, number in zip(("", "_ci_low", "_ci_high"), figure, strict=True)
        }


class CheckpointComparison(NamedTuple):
    """The table. judge: whose scores these are; reference: the row that the others are compared with."""

    judge: str
    reference: str
    rows: list[Row]

    def metrics(self) -> dict[str, Any]:
        """Each row under its name; with several seeds also mean, standard deviation and 95% interval of their ends."""
        rows = {row.answers.name: row.metrics() for row in self.rows}
        ends = [rows[row.answers.name] for row in self.rows if row.answers.seed is not None]
        metrics: dict[str, Any] = {"checkpoints": rows}
        if len(ends) > 1:
            metrics["over_seeds"] = {
                name: _over_seeds([row[name] for row in ends])
                for name in ("loss", "perplexity", "score")
                if all(name in row for row in ends)
            }
        return metrics

    def lines(self) -> Iterator[str]:
        """The table as text, its columns aligned, and what the seeds are together."""
        metrics = self.metrics()
        yield f"scores by {self.judge}, differences to {self.reference}"
        yield from aligned([COLUMNS, *table_rows(metrics["checkpoints"])])
        for name, figures in metrics.get("over_seeds", {}).items():
            yield (
                f"{name} over the seeds: {figures['mean']:.3f} ± {figures['sd']:.3f} "
                f"(95% interval {figures['ci_low']:.3f} to {figures['ci_high']:.3f})"
            )


DIGITS = {"loss": 3, "perplexity": 2, "score": 1, "loss_difference": 3, "score_difference": 1}
COLUMNS = ("", "loss", "perplexity", "score", "loss, difference", "score, difference")


def table_rows(checkpoints: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """The cells under `COLUMNS` of `metrics()["checkpoints"]`, as people read them.

    >>> table_rows({"seed_1": {"loss": 0.5, "loss_ci_low": 0.25, "loss_ci_high": 1}})
    [('seed_1', '0.500 (0.250 to 1.000)', '', '', '', '')]
    """
    return [
        (title, *(
            Figure(row[name], row[f"{name}_ci_low"], row[f"{name}_ci_high"]).shown(digits) if name in row else ""
            for name, digits in DIGITS.items()
        ))
        for title, row in checkpoints.items()
    ]  # fmt: skip


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """
    >>> list(aligned([("", "loss"), ("base", "6.5")]))
    ['      loss', 'base   6.5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def compare_models(
    entries: Sequence[Entry],
    test_tokens: Sequence[int],
    models: Sequence[Answers],
    judge: Judge,
    reference: str,
    bootstrap_samples: int,
    seed: int,
) -> CheckpointComparison:
    """Score all models' answers, and compare each with the reference.

    Args:
        entries: of the test set.
        test_tokens: of each entry's reference response, with its end.
        models: at least one.
        judge: scores the responses.
        reference: the name of one of them.
        bootstrap_samples: for the intervals; the entries are drawn anew, the seeds are not.
        seed: of what is drawn.

    Raises:
        UserError: what the judge raises.
    """
    scores = {model.name: judge.score(items(entries, model.responses)) for model in models}
    nats = {model.name: model.nats for model in models}

    def loss_of(sums: Sequence[float]) -> Figure:
        interval = bootstrap_ratio_interval(sums, test_tokens, bootstrap_samples, seed)
        return Figure(math.fsum(sums) / sum(test_tokens), *interval)

    def score_of(values: Sequence[float]) -> Figure | None:
        return Figure(mean(values), *bootstrap_interval(values, bootstrap_samples, seed)) if values else None

    rows = []
    for model in models:
        loss = loss_of(model.nats)
        loss_difference = score_difference = None
        if model.name != reference:
            loss_difference = loss_of([a - b for a, b in zip(model.nats, nats[reference], strict=True)])
            both = zip(scores[model.name], scores[reference], strict=True)
            score_difference = score_of([a - b for a, b in both if a is not None and b is not None])
        rows.append(
            Row(
                model,
                loss,
                Figure(*(math.exp(min(nat, 700.0)) for nat in loss)),
                score_of(drop_missing(scores[model.name])),
                loss_difference,
                score_difference,
            )  # fmt: skip
        )
    return CheckpointComparison(judge.name, reference, rows)


def read_checkpoints(
    folder: str | os.PathLike[str], max_items: int | None = None
) -> tuple[list[int], list[Answers], str] | None:
    """What `finetune-instruct` writes with several seeds or checkpoints; None where there is one model alone.

    Returns:
        The tokens of each reference response, the models' answers, and the name of the one that is kept.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder, "checkpoints.json")
    if not path.exists():
        return None
    found = files.read_json(path)
    try:
        ends: dict[int, int] = {}  # the last step of each seed
        for row in found["checkpoints"]:
            if row["seed"] is not None:
                ends[row["seed"]] = max(row["step"], ends.get(row["seed"], 0))
        models = [
            Answers(
                "base" if row["seed"] is None else f"seed_{row['seed']}_step_{row['step']}",
                row["nats"][:max_items],
                row["responses"][:max_items],
                row["seed"] if row["step"] == ends.get(row["seed"]) else None,
            )
            for row in found["checkpoints"]
        ]
        kept = next(model.name for model in models if model.seed is not None)
        tokens = found["test_tokens"][:max_items]
        if {len(tokens)} != {len(column) for model in models for column in (model.nats, model.responses)}:
            raise ValueError("not all have as many entries")
        return tokens, models, kept
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {error}); {_REMEDY}") from None


def compare_checkpoints(
    folder: str | os.PathLike[str], entries: Sequence[Entry], judge: Judge, bootstrap_samples: int, seed: int
) -> CheckpointComparison | None:
    """The table of what `finetune-instruct` wrote, of the first so many test entries; None where there is one model
    alone. Raises UserError as `read_checkpoints` and the judge do."""
    if (found := read_checkpoints(folder, len(entries))) is None:
        return None
    test_tokens, models, kept = found
    return compare_models(entries, test_tokens, models, judge, kept, bootstrap_samples, seed)


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    sd, low, high = mean_std_ci(values)
    named = {"mean": mean(values), "sd": sd, "ci_low": low, "ci_high": high}
    return {name: round(value, _DIGITS) for name, value in named.items()}
