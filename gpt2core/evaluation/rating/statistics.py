"""What the ratings add up to: a mean for each model, and how far people agree with each other and with judges."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2core.evaluation.metrics.agreement import agreement, weighted_kappa
from gpt2core.evaluation.metrics.intervals import bootstrap_interval, mean
from gpt2core.evaluation.rating.ratings import QUESTIONS, SCORES, Responses
from gpt2core.evaluation.rating.ratings import Scores as Rated

PEOPLE = "people"
BOOTSTRAP_SAMPLES = 1000
_DIGITS = 4


def summarize(
    responses: Responses,
    ratings: Mapping[str, Mapping[str, Rated]],
    judges: Mapping[str, Mapping[str, float]],
    seed: int,
) -> dict[str, Any]:
    """Figures of what was rated, JSON values.

    Args:
        responses: what there is to rate; ratings of other texts do not count.
        ratings: by rater and item, as `Ratings.read` gives them.
        judges: the scores of other judges by name and item.
        seed: of the bootstrap.

    Returns:
        raters: how many texts each has rated in full. models: for each, question by question, the mean of its texts'
        means over the raters, its 95% bootstrap interval and the number of texts. agreement: for each two raters and
        each question Cohen's kappa with quadratic weights (Cohen 1968) and the correlations of `Agreement`; the same,
        without kappa, of the raters' mean with each judge: no judge has the raters' scale.
    """
    items = sorted(responses.distinct())
    means = {question: _means(items, ratings, question) for question in QUESTIONS}
    models = {
        model: {question: _figures([means[question][each.item] for each in said], seed) for question in QUESTIONS}
        for model, said in responses.by_model.items()
    }
    rows = []
    for question in QUESTIONS:
        for a, b in itertools.combinations(sorted(ratings), 2):
            first, second = ([ratings[rater].get(item, {}).get(question) for item in items] for rater in (a, b))
            both = {"kappa": _rounded(weighted_kappa(first, second, SCORES))}
            rows.append({"between": [a, b], "question": question} | both | _correlations(first, second))
        for judge, scores in judges.items():
            people = [means[question][item] for item in items]
            theirs = [scores.get(item) for item in items]
            rows.append(
                {"between": [PEOPLE, judge], "question": question, "kappa": None} | _correlations(people, theirs)
            )
    return {
        "texts": len(items),
        "raters": {
            rater: sum(set(rated.get(item, {})) == set(QUESTIONS) for item in items) for rater, rated in ratings.items()
        },
        "models": models,
        "agreement": rows,
    }


def _means(items: Sequence[str], ratings: Mapping[str, Mapping[str, Rated]], question: str) -> dict[str, float | None]:
    """Of each item the mean over those who have answered."""
    found: dict[str, float | None] = {}
    for item in items:
        given = [rated[item][question] for rated in ratings.values() if question in rated.get(item, {})]
        found[item] = mean(given) if given else None
    return found


def _figures(scores: Sequence[float | None], seed: int) -> dict[str, Any]:
    given = [score for score in scores if score is not None]
    if not given:
        return {"mean": None, "ci_low": None, "ci_high": None, "n": 0}
    low, high = bootstrap_interval(given, BOOTSTRAP_SAMPLES, seed)
    return {"mean": _rounded(mean(given)), "ci_low": _rounded(low), "ci_high": _rounded(high), "n": len(given)}


def _correlations(first: Sequence[float | None], second: Sequence[float | None]) -> dict[str, Any]:
    values = dataclasses.asdict(agreement(first, second))
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in values.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, _DIGITS)
