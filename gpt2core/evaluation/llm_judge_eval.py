"""The stage llm-judge-eval: judges' mean scores of the responses, their uncertainty, and baselines.

Three baselines show what a score means: the base model's response before fine-tuning, an echo of the input, and the
answer of the nearest training entry. Each judge scores the response and all three.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.evaluation.judges import Item, Judge, Pair
from gpt2core.evaluation.metrics.agreement import agreement
from gpt2core.evaluation.metrics.intervals import Scores, bootstrap_interval, drop_missing, mean, rounded
from gpt2core.evaluation.metrics.nearest import nearest_outputs
from gpt2core.evaluation.metrics.pairwise import compare

Entry = Mapping[str, str]

TRAIN_KEYS = ("instruction", "input", "output")
TEST_KEYS = (*TRAIN_KEYS, "response", "base_response")
_NOT_BLANK = ("instruction", "output")  # a judge needs a task, and a reference to compare with
_REMEDY = "write it again with: dvc repro finetune-instruct"


@dataclass(frozen=True)
class Evaluation:
    """Scores of all judges.

    Args:
        metrics: content of `metrics/llm_judge_eval.json`: the first judge's summary; with several judges, each one's
            summary in `judges`, their `agreement` on the model's responses by pairs, and the `panel`'s mean; and
            `pairwise` comparisons with the base model.
        scores: [n] each, columns of the table of scores: `score`, `base`, `echo`, and `nearest` by the first judge,
            then the responses' scores by each other judge, under its name.
    """

    metrics: dict[str, Any]
    scores: dict[str, Scores]

    def lines(self) -> Iterator[str]:
        """Yield a line for each judge, each pair of judges, and each comparison with the base model."""
        for judge, row in (self.metrics.get("judges") or {self.metrics["judge"]: self.metrics}).items():
            yield (
                f"{judge}: mean {row['mean_score']:.1f} of 100 "
                f"(95% interval {row['ci_low']:.1f} to {row['ci_high']:.1f}, n = {row['n']}); "
                f"base {row['base_score']:.1f}, echo {row['echo_score']:.1f}, nearest {row['nearest_score']:.1f}"
            )
        for pair, row in self.metrics.get("agreement", {}).items():
            correlations = ", ".join(f"{name.title()} {row[name]}" for name in ("pearson", "spearman", "kendall"))
            yield f"agreement of {pair}: {correlations}"
        for judge, row in self.metrics.get("pairwise", {}).items():
            yield (
                f"{judge}: tuned against base, win rate {row['win_rate']:.1%} "
                f"(95% interval {row['ci_low']:.1%} to {row['ci_high']:.1%}, n = {row['n']}): {row['wins']} wins, "
                f"{row['ties']} ties, {row['losses']} losses; {row['order_flips']} flipped with the order"
            )

    def to_csv(self) -> str:
        """Return the table of scores as CSV, one row per test entry; a missing score is an empty cell."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["index", *self.scores])
        for index, row in enumerate(zip(*self.scores.values(), strict=True)):
            table.writerow([index, *("" if score is None else round(score, 4) for score in row)])
        return text.getvalue()


def read_responses(folder: str | os.PathLike[str]) -> tuple[list[Entry], list[Entry]]:
    """Read the files that `finetune-instruct` writes: the test entries (`test.json`) and the training entries.

    Raises:
        UserError: names file, entry (counted from 1), and key if something is missing or of the wrong type.
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
    """Score the responses to the test entries, and the three baselines.

    The first judge gives the headline metrics. With `pairwise`, the model's responses are also compared with the base
    model's, in both orders. The seed is that of the bootstrap.

    Raises:
        UserError: a judge failed. The model's responses are scored first, so that it fails early.
    """
    answers = {
        "score": [entry["response"] for entry in test_entries],
        "base": [entry["base_response"] for entry in test_entries],
        "echo": [entry["input"] or entry["instruction"] for entry in test_entries],
        "nearest": nearest_outputs(train_entries, test_entries),
    }
    scores: list[dict[str, Scores]] = [
        {name: judge.score(items(test_entries, texts)) for name, texts in answers.items()} for judge in judges
    ]
    summaries = [_summary(row, bootstrap_samples, seed) for row in scores]
    metrics: dict[str, Any] = {"judge": judges[0].name, **summaries[0]}
    by_judge = {judge.name: row["score"] for judge, row in zip(judges, scores, strict=True)}
    if len(judges) > 1:
        metrics["judges"] = dict(zip(by_judge, summaries, strict=True))
        metrics |= _panel(by_judge, bootstrap_samples, seed)
    if pairwise:
        pairs = [
            Pair(entry["instruction"], entry["input"], entry["output"], entry["response"], entry["base_response"])
            for entry in test_entries
        ]
        metrics["pairwise"] = {judge.name: compare(judge, pairs, bootstrap_samples, seed) for judge in judges}
    others = {name: column for name, column in by_judge.items() if name != judges[0].name}
    return Evaluation(metrics, scores[0] | others)


def _summary(scores: Mapping[str, Scores], bootstrap_samples: int, seed: int) -> dict[str, float | int]:
    """Return a judge's mean scores, from 0 to 100, the interval of the model's mean, and its coverage, from 0 to 1."""
    present = drop_missing(scores["score"])
    ci_low, ci_high = bootstrap_interval(present, bootstrap_samples, seed)
    baselines = {f"{name}_score": mean(scores[name]) for name in ("base", "echo", "nearest")}
    n = len(scores["score"])
    summary = {"mean_score": mean(present), "ci_low": ci_low, "ci_high": ci_high, **baselines}
    return rounded({**summary, "coverage": len(present) / n, "n": n})


def _panel(by_judge: Mapping[str, Scores], bootstrap_samples: int, seed: int) -> dict[str, Any]:
    """Return the agreement of each two judges, and the panel's mean over the items that all judges have scored."""
    metrics: dict[str, Any] = {
        "agreement": {
            f"{a} and {b}": rounded(agreement(by_judge[a], by_judge[b])) for a, b in itertools.combinations(by_judge, 2)
        }
    }
    if panel := [mean(item) for item in zip(*by_judge.values(), strict=True) if None not in item]:
        ci_low, ci_high = bootstrap_interval(panel, bootstrap_samples, seed)
        metrics["panel"] = rounded({"mean_score": mean(panel), "ci_low": ci_low, "ci_high": ci_high, "n": len(panel)})
    return metrics


def items(entries: Sequence[Entry], responses: Sequence[str]) -> list[Item]:
    """Return the items that a judge scores: each entry with one response."""
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
        content = f"a {type(entries).__name__}" if entries else "nothing in it"
        raise UserError(f"{path}: must be a list of entries with {', '.join(keys)}, found {content}; {_REMEDY}")
    for number, entry in enumerate(entries, start=1):
        if problem := _problem(entry, keys):
            raise UserError(f"{path}: entry {number} of {len(entries)}: {problem}; {_REMEDY}")
    return entries


def _problem(entry: Any, keys: Sequence[str]) -> str | None:
    """Return the first error of an entry, or None."""
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
