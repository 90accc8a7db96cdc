"""How good the responses are: judges' mean scores with their uncertainty, and beside them what little effort scores.

Three baselines give the number its meaning: the base model's response (what fine-tuning started from), an echo of the
input, and the answer of the nearest training entry. All four are scored by each judge.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.evaluation.judges import Item, Judge, Pair
from gpt2core.evaluation.metrics.agreement import agreement
from gpt2core.evaluation.metrics.intervals import Scores, bootstrap_interval, drop_missing, mean
from gpt2core.evaluation.metrics.nearest import nearest_outputs
from gpt2core.evaluation.metrics.pairwise import Comparison, compare

Entry = Mapping[str, str]

TRAIN_KEYS = ("instruction", "input", "output")
TEST_KEYS = (*TRAIN_KEYS, "response", "base_response")
_NOT_BLANK = ("instruction", "output")  # a task needs words, and a reference something to compare with
_REMEDY = "write it again with: dvc repro finetune-instruct"
_DIGITS = 4  # of every number that is written: more would differ between machines


@dataclass(frozen=True)
class Report:
    """One judge's scores of every test entry, by whose answer it is, and the interval of the model's mean."""

    judge: str
    model: Scores
    base: Scores
    echo: Scores
    nearest: Scores
    ci_low: float
    ci_high: float

    def metrics(self) -> dict[str, Any]:
        """Scores from 0 to 100, coverage from 0 to 1."""
        return {
            "judge": self.judge,
            "mean_score": round(mean(self.model), _DIGITS),
            "ci_low": round(self.ci_low, _DIGITS),
            "ci_high": round(self.ci_high, _DIGITS),
            "base_score": round(mean(self.base), _DIGITS),
            "echo_score": round(mean(self.echo), _DIGITS),
            "nearest_score": round(mean(self.nearest), _DIGITS),
            "coverage": round(len(drop_missing(self.model)) / len(self.model), _DIGITS),
            "n": len(self.model),
        }

    def line(self) -> str:
        """The figures as people read them."""
        return (
            f"{self.judge}: mean {mean(self.model):.1f} of 100 "
            f"(95% interval {self.ci_low:.1f} to {self.ci_high:.1f}, n = {len(self.model)}); "
            f"base {mean(self.base):.1f}, echo {mean(self.echo):.1f}, nearest {mean(self.nearest):.1f}"
        )


@dataclass(frozen=True)
class Evaluation:
    """What all judges say: the first one's figures stand for the whole, the others' beside them."""

    reports: Sequence[Report]
    panel_interval: tuple[float, float] | None = None  # of the judges' mean, where there are several
    comparisons: Sequence[Comparison] = field(default_factory=tuple)

    def metrics(self) -> dict[str, Any]:
        """What `metrics/llm_judge_eval.json` holds: the first judge's report; with several judges each one's under
        `judges`, their `agreement` on the model's responses by pairs, and the `panel`'s mean; with comparisons those.
        """
        first, *others = self.reports
        metrics = first.metrics()
        if others:
            metrics["judges"] = {
                report.judge: {key: value for key, value in report.metrics().items() if key != "judge"}
                for report in self.reports
            }
            metrics["agreement"] = {
                f"{a.judge} and {b.judge}": {
                    key: round(value, _DIGITS) if isinstance(value, float) else value
                    for key, value in dataclasses.asdict(agreement(a.model, b.model)).items()
                }
                for a, b in itertools.combinations(self.reports, 2)
            }
        if self.panel_interval:
            panel = panel_scores([report.model for report in self.reports])
            low, high = self.panel_interval
            metrics["panel"] = {
                "mean_score": round(mean(panel), _DIGITS),
                "ci_low": round(low, _DIGITS),
                "ci_high": round(high, _DIGITS),
                "n": len(drop_missing(panel)),
            }
        if self.comparisons:
            metrics["pairwise"] = {comparison.judge: comparison.metrics() for comparison in self.comparisons}
        return metrics

    def lines(self) -> Iterator[str]:
        """A line of each judge, of each two judges' agreement, and of each comparison with the base."""
        metrics = self.metrics()
        yield from (report.line() for report in self.reports)
        for pair, found in metrics.get("agreement", {}).items():
            figures = ", ".join(f"{name.title()} {found[name]}" for name in ("pearson", "spearman", "kendall"))
            yield f"agreement of {pair}: {figures}"
        for judge, won in metrics.get("pairwise", {}).items():
            yield (
                f"{judge}: tuned against base, win rate {won['win_rate']:.1%} "
                f"(95% interval {won['ci_low']:.1%} to {won['ci_high']:.1%}, n = {won['n']}): {won['wins']} wins, "
                f"{won['ties']} ties, {won['losses']} losses; {won['order_flips']} flipped with the order"
            )

    def to_csv(self) -> str:
        """A line for each test entry: index, score, base, echo, nearest by the first judge; then the score by each
        other judge, under its name. An empty cell where there is no score."""
        first, *others = self.reports
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["index", "score", "base", "echo", "nearest", *(report.judge for report in others)])
        columns = (first.model, first.base, first.echo, first.nearest, *(report.model for report in others))
        for index, row in enumerate(zip(*columns, strict=True)):
            table.writerow([index, *("" if score is None else round(score, _DIGITS) for score in row)])
        return text.getvalue()


def read_responses(folder: str | os.PathLike[str]) -> tuple[list[Entry], list[Entry]]:
    """Read `test.json` and `train.json` as `finetune-instruct` writes them; returns the test and training entries.

    Raises UserError that names file, entry (counted from 1) and key if something is missing or of the wrong kind.
    """
    return _read(Path(folder, "test.json"), TEST_KEYS), _read(Path(folder, "train.json"), TRAIN_KEYS)


def evaluate_responses(
    test_entries: Sequence[Entry],
    train_entries: Sequence[Entry],
    judges: Sequence[Judge],
    bootstrap_samples: int,
    seed: int,
    *,
    pairwise: bool = False,
) -> Evaluation:
    """Score the responses of `test_entries` and the three baselines. Entries as `read_responses` returns them.

    With `pairwise` each judge also compares the model's responses with the base's, in both orders.

    Raises whatever UserError a judge does. The model's responses come first, so that a judge that fails does so soon.
    """
    reports = [_report(test_entries, train_entries, judge, bootstrap_samples, seed) for judge in judges]
    panel_interval = None
    if len(reports) > 1 and (panel := drop_missing(panel_scores([report.model for report in reports]))):
        panel_interval = bootstrap_interval(panel, bootstrap_samples, seed)
    comparisons: list[Comparison] = []
    if pairwise:
        pairs = [
            Pair(entry["instruction"], entry["input"], entry["output"], entry["response"], entry["base_response"])
            for entry in test_entries
        ]
        comparisons = [compare(judge, pairs, bootstrap_samples, seed) for judge in judges]
    return Evaluation(reports, panel_interval, comparisons)


def _report(
    test_entries: Sequence[Entry], train_entries: Sequence[Entry], judge: Judge, bootstrap_samples: int, seed: int
) -> Report:
    model = judge.score(items(test_entries, [entry["response"] for entry in test_entries]))
    ci_low, ci_high = bootstrap_interval(drop_missing(model), bootstrap_samples, seed)
    return Report(
        judge=judge.name,
        model=model,
        base=judge.score(items(test_entries, [entry["base_response"] for entry in test_entries])),
        echo=judge.score(items(test_entries, [entry["input"] or entry["instruction"] for entry in test_entries])),
        nearest=judge.score(items(test_entries, nearest_outputs(train_entries, test_entries))),
        ci_low=ci_low,
        ci_high=ci_high,
    )


def panel_scores(scores: Sequence[Scores]) -> list[float | None]:
    """Of each item, the mean of all judges' scores; None where one of them gave none, lest a judge's absence count."""
    return [None if None in item else mean(item) for item in zip(*scores, strict=True)]


def items(entries: Sequence[Entry], responses: Sequence[str]) -> list[Item]:
    """What a judge is to score: one response to each entry."""
    return [
        Item(entry["instruction"], entry["input"], entry["output"], response)
        for entry, response in zip(entries, responses, strict=True)
    ]


def _read(path: Path, keys: Sequence[str]) -> list[Entry]:
    try:
        entries = files.read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from None
    if not isinstance(entries, list) or not entries:
        found = f"a {type(entries).__name__}" if entries else "nothing in it"
        raise UserError(f"{path}: must be a list of entries with {', '.join(keys)}, found {found}; {_REMEDY}")
    for number, entry in enumerate(entries, start=1):
        if problem := _problem(entry, keys):
            raise UserError(f"{path}: entry {number} of {len(entries)}: {problem}; {_REMEDY}")
    return entries


def _problem(entry: Any, keys: Sequence[str]) -> str | None:
    """What is wrong with an entry, if anything is."""
    if not isinstance(entry, dict):
        return f"must be an object with {', '.join(keys)}, found {entry!r:.60}"
    for key in keys:
        if key not in entry:
            return f"has no {key!r}; needed: {', '.join(keys)}"
        if not isinstance(entry[key], str):
            return f"{key!r} must be a text, found {entry[key]!r:.60}"
        if key in _NOT_BLANK and not entry[key].strip():
            return f"{key!r} is blank"
    return None
