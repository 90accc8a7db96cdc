"""Judges: what gives a response its score from 0 to 100. A new one is a module here and a line in `make_judge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gpt2core import config


@dataclass(frozen=True)
class Item:
    """One response to be scored: what was asked, the reference answer, and the answer given."""

    instruction: str
    input: str
    reference: str
    response: str


class Judge(Protocol):
    """Scores responses. `name` stands in the metrics beside the scores, which mean nothing without it."""

    name: str

    def score(self, items: Sequence[Item]) -> list[float | None]:
        """A score from 0 to 100 for each item, in their order; None where it could not be scored."""
        ...


def make_judge(judge: config.Judge, seed: int) -> Judge:
    """The judge that the params name. `seed` is sent with each request of a judge that samples."""
    if judge.kind == "chrf":
        from gpt2core.evaluate.judges.chrf import ChrfJudge

        return ChrfJudge()
    from gpt2core.evaluate.judges.openai import OpenAIJudge  # the client takes half a second to import

    return OpenAIJudge(
        base_url=judge.base_url or "",
        model=judge.model or "",
        seed=seed,
        timeout_s=judge.timeout_s,
        max_retries=judge.max_retries,
        concurrency=judge.concurrency,
        min_coverage=judge.min_coverage,
    )
