"""The tuned model's responses compared with the base model's, pair by pair (Zheng et al. 2023, section 3.4).

Judges prefer the response that they see first. Therefore each pair is judged in both orders, and a response wins only
if it wins in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from gpt2core.evaluation.judges.judge import Judge, Pair, Preference
from gpt2core.evaluation.metrics.intervals import bootstrap_interval, drop_missing, mean, rounded

_SWAPPED: dict[Preference, Preference] = {"first": "second", "second": "first", "tie": "tie"}
_POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}


def compare(judge: Judge, pairs: Sequence[Pair], bootstrap_samples: int, seed: int) -> dict[str, float | int]:
    """Judge each pair in both orders.

    Returns:
        win_rate: of the first responses, from 0 to 1; a tie is half a win. ci_low, ci_high: its 95% bootstrap interval.
        wins, ties, losses: counts. order_flips: ties that the judge decided differently in the two orders.
        coverage: fraction of the pairs that were judged. n: number of pairs.

    Raises:
        UserError: the judge failed.
    """
    forward = judge.prefer(pairs)
    backward = judge.prefer([replace(pair, first=pair.second, second=pair.first) for pair in pairs])
    outcomes: list[Preference | None] = []
    order_flips = 0
    for choice, swapped in zip(forward, backward, strict=True):
        if choice is None or swapped is None:
            outcomes.append(None)
            continue
        is_same = choice == _SWAPPED[swapped]
        order_flips += not is_same
        outcomes.append(choice if is_same else "tie")
    counts = Counter(outcomes)
    points = drop_missing([_POINTS[outcome] if outcome else None for outcome in outcomes])
    ci_low, ci_high = bootstrap_interval(points, bootstrap_samples, seed)
    metrics = {
        "win_rate": mean(points),
        "ci_low": ci_low,
        "ci_high": ci_high,
        "wins": counts["first"],
        "ties": counts["tie"],
        "losses": counts["second"],
        "order_flips": order_flips,
        "coverage": len(points) / len(outcomes),
        "n": len(outcomes),
    }
    return rounded(metrics)
