"""Statistics of ratings: means for each model, and the agreement of raters with each other and with judges."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2core.evaluation.metrics.agreement import agreement, weighted_kappa
from gpt2core.evaluation.metrics.intervals import Scores, bootstrap_interval, drop_missing, mean, rounded
from gpt2core.evaluation.rating.ratings import QUESTIONS, SCORES, Responses
from gpt2core.evaluation.rating.ratings import Scores as Ratings

PEOPLE = "people"
BOOTSTRAP_SAMPLES = 1000


def summarize(
    responses: Responses,
    ratings: Mapping[str, Mapping[str, Ratings]],
    judges: Mapping[str, Mapping[str, float]],
    seed: int,
) -> dict[str, Any]:
    """Return statistics of the ratings of these responses, JSON values.

    Ratings are those of `Ratings.read`; other judges' scores are by name and item. The seed is that of the bootstrap.

    Returns:
        texts: number of different texts. raters: number of texts that each has rated in full. models: for each model
        and question, the mean of its texts' means over the raters, its 95% bootstrap interval, and the number of texts.
        agreement: for each question and each two raters, Cohen's kappa with quadratic weights (Cohen 1968) and the
        correlations of `agreement`; for each judge its correlations with the raters' mean. A judge has no kappa,
        because its scale is not the raters' scale.
    """
    items = sorted(responses.distinct())
    by_question = {
        question: {
            rater: [scores.get(item, {}).get(question) for item in items] for rater, scores in sorted(ratings.items())
        }
        for question in QUESTIONS
    }
    means = {
        question: dict(zip(items, map(_mean, zip(*by_rater.values(), strict=True)), strict=True))
        for question, by_rater in by_question.items()
    }
    rows = []
    for question, by_rater in by_question.items():
        for (a, first), (b, second) in itertools.combinations(by_rater.items(), 2):
            kappa = weighted_kappa(first, second, SCORES)
            row = {"between": [a, b], "question": question, "kappa": kappa, **agreement(first, second)}
            rows.append(rounded(row))
        for judge, scores in judges.items():
            correlations = agreement(list(means[question].values()), [scores.get(item) for item in items])
            rows.append(rounded({"between": [PEOPLE, judge], "question": question, "kappa": None, **correlations}))
    return {
        "texts": len(items),
        "raters": {
            rater: sum(set(scores.get(item, {})) == set(QUESTIONS) for item in items)
            for rater, scores in ratings.items()
        },
        "models": {
            model: {question: _summary([means[question][each.item] for each in texts], seed) for question in QUESTIONS}
            for model, texts in responses.by_model.items()
        },
        "agreement": rows,
    }


def _mean(scores: Scores) -> float | None:
    """Return the mean of the scores that are not None, or None if there are none."""
    return mean(scores) if drop_missing(scores) else None


def _summary(scores: Sequence[float | None], seed: int) -> dict[str, Any]:
    present = drop_missing(scores)
    if not present:
        return {"mean": None, "ci_low": None, "ci_high": None, "n": 0}
    low, high = bootstrap_interval(present, BOOTSTRAP_SAMPLES, seed)
    return rounded({"mean": mean(present), "ci_low": low, "ci_high": high, "n": len(present)})
