"""The tuned model's responses against the base's, two by two (Zheng et al. 2023, section 3.4).

Judges like what comes first. So each pair is judged in both orders, and is won only by who wins in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpt2core.evaluation.judges import Judge, Pair, Preference
from gpt2core.evaluation.metrics.intervals import bootstrap_interval, drop_missing, mean

_WHEN_TURNED: dict[Preference, Preference] = {"first": "second", "second": "first", "tie": "tie"}
_POINTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class Comparison:
    """What became of each pair, from the view of its first response: win, tie, loss, or None (not judged).

    order_flips: the pairs, counted among the ties, of which the two orders were judged differently.
    """

    judge: str
    outcomes: Sequence[str | None]
    order_flips: int
    win_rate: float
    ci_low: float
    ci_high: float

    def metrics(self) -> dict[str, float | int]:
        """Rates from 0 to 1, and counts. A tie is half a win."""
        counts = Counter(outcome for outcome in self.outcomes if outcome)
        return {
            "win_rate": round(self.win_rate, 4),
            "ci_low": round(self.ci_low, 4),
            "ci_high": round(self.ci_high, 4),
            "wins": counts["win"],
            "ties": counts["tie"],
            "losses": counts["loss"],
            "order_flips": self.order_flips,
            "coverage": round(counts.total() / len(self.outcomes), 4),
            "n": len(self.outcomes),
        }


def compare(judge: Judge, pairs: Sequence[Pair], bootstrap_samples: int, seed: int) -> Comparison:
    """Judge each pair as it stands and turned around. Raises whatever UserError the judge does."""
    forward = judge.prefer(pairs)
    backward = judge.prefer([replace(pair, first=pair.second, second=pair.first) for pair in pairs])
    outcomes: list[str | None] = []
    order_flips = 0
    for choice, turned in zip(forward, backward, strict=True):
        if choice is None or turned is None:
            outcomes.append(None)
            continue
        agreed = choice == _WHEN_TURNED[turned]
        order_flips += not agreed
        outcomes.append({"first": "win", "second": "loss", "tie": "tie"}[choice] if agreed else "tie")
    points = [_POINTS[outcome] if outcome else None for outcome in outcomes]
    ci_low, ci_high = bootstrap_interval(drop_missing(points), bootstrap_samples, seed)
    return Comparison(judge.name, outcomes, order_flips, mean(points), ci_low, ci_high)
