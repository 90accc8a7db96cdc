"""How good the responses are: a judge's mean score with its uncertainty, and beside it what little effort scores.

Three baselines give the number its meaning: the base model's response (what fine-tuning started from), an echo of the
input, and the answer of the nearest training entry. All four are scored by the same judge.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.evaluate.judges import Item, Judge
from gpt2core.evaluate.nearest import nearest_outputs

Entry = Mapping[str, str]
Scores = Sequence[float | None]

TRAIN_KEYS = ("instruction", "input", "output")
TEST_KEYS = (*TRAIN_KEYS, "response", "base_response")
_NOT_BLANK = ("instruction", "output")  # a task needs words, and a reference something to compare with
_REMEDY = "write it again with: dvc repro finetune-instruct"
_DIGITS = 4  # of every number that is written: more would differ between machines


@dataclass(frozen=True)
class Report:
    """The scores of every test entry, by whose answer it is, and the interval of the model's mean."""

    judge: str
    model: Scores
    base: Scores
    echo: Scores
    nearest: Scores
    ci_low: float
    ci_high: float

    def metrics(self) -> dict[str, str | float | int]:
        """What `metrics/llm_judge_eval.json` holds; scores from 0 to 100, coverage from 0 to 1."""
        return {
            "judge": self.judge,
            "mean_score": round(mean(self.model), _DIGITS),
            "ci_low": round(self.ci_low, _DIGITS),
            "ci_high": round(self.ci_high, _DIGITS),
            "base_score": round(mean(self.base), _DIGITS),
            "echo_score": round(mean(self.echo), _DIGITS),
            "nearest_score": round(mean(self.nearest), _DIGITS),
            "coverage": round(len(_scored(self.model)) / len(self.model), _DIGITS),
            "n": len(self.model),
        }

    def to_csv(self) -> str:
        """A line for each test entry: index, score, base, echo, nearest; an empty cell where there is no score."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["index", "score", "base", "echo", "nearest"])
        for index, row in enumerate(zip(self.model, self.base, self.echo, self.nearest, strict=True)):
            table.writerow([index, *("" if score is None else round(score, _DIGITS) for score in row)])
        return text.getvalue()


def read_responses(folder: str | os.PathLike[str]) -> tuple[list[Entry], list[Entry]]:
    """Read `test.json` and `train.json` as `finetune-instruct` writes them; returns the test and training entries.

    Raises UserError that names file, entry (counted from 1) and key if something is missing or of the wrong kind.
    """
    return _read(Path(folder, "test.json"), TEST_KEYS), _read(Path(folder, "train.json"), TRAIN_KEYS)


def evaluate_responses(
    test_entries: Sequence[Entry], train_entries: Sequence[Entry], judge: Judge, bootstrap_samples: int, seed: int
) -> Report:
    """Score the responses of `test_entries` and the three baselines. Entries as `read_responses` returns them.

    Raises whatever UserError the judge does. The model's responses come first, so that a judge that fails does so soon.
    """
    model = judge.score(_items(test_entries, [entry["response"] for entry in test_entries]))
    ci_low, ci_high = bootstrap_interval(_scored(model), bootstrap_samples, seed)
    return Report(
        judge=judge.name,
        model=model,
        base=judge.score(_items(test_entries, [entry["base_response"] for entry in test_entries])),
        echo=judge.score(_items(test_entries, [entry["input"] or entry["instruction"] for entry in test_entries])),
        nearest=judge.score(_items(test_entries, nearest_outputs(train_entries, test_entries))),
        ci_low=ci_low,
        ci_high=ci_high,
    )


def mean(scores: Scores) -> float:
    """The mean of the scores that there are; summed exactly, so that it is the same on every machine."""
    scored = _scored(scores)
    return math.fsum(scored) / len(scored)


def bootstrap_interval(scores: Sequence[float], samples: int, seed: int) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the mean (Efron & Tibshirani 1993, chapter 13).

    The scores are drawn anew, with replacement, `samples` times; 2.5% of those means lie below the interval and 2.5%
    above it. It tells how far another test set of this size may fall, not how far the judge errs.
    """
    values = np.asarray(scores, dtype=np.float64)  # [n]
    generator = np.random.Generator(np.random.PCG64(seed))
    # A sample at a time: memory for n indices, not for n × samples.
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(samples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _items(entries: Sequence[Entry], responses: Sequence[str]) -> list[Item]:
    return [
        Item(entry["instruction"], entry["input"], entry["output"], response)
        for entry, response in zip(entries, responses, strict=True)
    ]


def _scored(scores: Scores) -> list[float]:
    return [score for score in scores if score is not None]


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
