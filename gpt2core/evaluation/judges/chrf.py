"""chrF++ against the reference answer: the default judge, which needs no network.

It is a reference metric, not a language model: it counts the n-grams of characters and words that response and
reference share, and does not know whether a differently worded answer is right. Its scores are high: 200 responses that
GPT-4 scored 65 on average get 82, in nearly the same order (Spearman 0.87). Compare them only with each other, not with
those of another judge.
"""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF

from gpt2core.evaluation.judges.judge import Item, Pair, Preference


class ChrfJudge:
    """Sentence-level chrF++ (Popović 2017, "chrF++: words helping character n-grams"), as sacrebleu computes it."""

    name = "chrf"

    def __init__(self) -> None:
        self._metric = CHRF(word_order=2)  # character n-grams up to 6 (the default), word n-grams up to 2: the "++"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        """Return the F2 score of each response from 0 to 100 (recall counts twice); an empty response gets 0."""
        return [self._score(item.response, item.reference) for item in items]

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference | None]:
        """Return the response of each pair with the higher score; equal scores are a tie."""
        preferences: list[Preference | None] = []
        for pair in pairs:
            first, second = (self._score(response, pair.reference) for response in (pair.first, pair.second))
            preferences.append("tie" if first == second else "first" if first > second else "second")
        return preferences

    def _score(self, response: str, reference: str) -> float:
        return self._metric.sentence_score(response, [reference]).score
