"""chrF++ against the reference answer: the default judge, which needs no network.

It is a reference metric, not a language model: it counts the n-grams of characters and words that response and
reference share, and does not know whether a differently worded answer is right. It runs high: on 200 responses that
GPT-4 scored 65 on average it gives 82, in nearly the same order (Spearman 0.87). Compare its scores with each other,
never with those of another judge.
"""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF

from gpt2core.evaluation.judges import Item, Pair, Preference


class ChrfJudge:
    """Sentence-level chrF++ (Popović 2017, "chrF++: words helping character n-grams"), as sacrebleu computes it."""

    name = "chrf"

    def __init__(self) -> None:
        self._metric = CHRF(word_order=2)  # character n-grams up to 6 (the default), word n-grams up to 2: the "++"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        """F-score from 0 to 100 of each response, recall weighing twice as much as precision; an empty one gets 0."""
        return [self._metric.sentence_score(item.response, [item.reference]).score for item in items]

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference | None]:
        """The response with the higher score; equal scores are a tie."""
        chosen: list[Preference | None] = []
        for pair in pairs:
            first, second = (
                self._metric.sentence_score(response, [pair.reference]).score for response in (pair.first, pair.second)
            )
            chosen.append("tie" if first == second else "first" if first > second else "second")
        return chosen
