"""The table of several models' results on one test set, which `comparison.py` fills."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

COLUMNS = ("", "loss", "perplexity", "score", "loss, difference", "score, difference")
DIGITS = {"loss": 3, "perplexity": 2, "score": 1, "loss_difference": 3, "score_difference": 1}


class CheckpointComparison(NamedTuple):
    """The table.

    It has, by model, `loss` (nats per token of the reference responses), `perplexity`, `score`, `loss_difference`, and
    `score_difference`, each with the ends of its 95% bootstrap interval, `_ci_low` and `_ci_high`. Differences are the
    model's value minus the reference's. Missing values are left out.
    """

    judge: str  # name of the judge of the scores
    reference: str  # name of the model that the others are compared with
    checkpoints: dict[str, dict[str, float]]
    over_seeds: dict[str, dict[str, float]]  # mean, sd, and 95% interval of each value, if there are several seeds

    def metrics(self) -> dict[str, Any]:
        """Return the rows and, with several seeds, their statistics."""
        over_seeds = {"over_seeds": self.over_seeds} if self.over_seeds else {}
        return {"checkpoints": self.checkpoints, **over_seeds}

    def lines(self) -> Iterator[str]:
        """Yield the table as text with aligned columns, and the statistics over seeds."""
        yield f"scores by {self.judge}, differences to {self.reference}"
        yield from _aligned([COLUMNS, *table_rows(self.checkpoints)])
        for name, row in self.over_seeds.items():
            yield (
                f"{name} over the seeds: {row['mean']:.3f} ± {row['sd']:.3f} "
                f"(95% interval {row['ci_low']:.3f} to {row['ci_high']:.3f})"
            )


def table_rows(checkpoints: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """Return the cells under `COLUMNS`, formatted, with a row for each model.

    >>> table_rows({"seed_1": {"loss": 0.5, "loss_ci_low": 0.25, "loss_ci_high": 1}})
    [('seed_1', '0.500 (0.250 to 1.000)', '', '', '', '')]
    """

    def cell(row: Mapping[str, float], name: str, digits: int) -> str:
        if name not in row:
            return ""
        value, low, high = (f"{row[name + end]:.{digits}f}" for end in ("", "_ci_low", "_ci_high"))
        return f"{value} ({low} to {high})"

    return [(name, *(cell(row, *column) for column in DIGITS.items())) for name, row in checkpoints.items()]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield each row as a line, the first column aligned left and the others right.

    >>> list(_aligned([("", "loss"), ("base", "6.5")]))
    ['      loss', 'base   6.5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
