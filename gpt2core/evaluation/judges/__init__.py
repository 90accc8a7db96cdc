"""Judges: what scores a response from 0 to 100, and says which of two is better.

A new one is a module here and a line in `make_judges`. `chrf` compares with the reference; the others are language
models: what they are asked stands in `questions.py`, how in `language_model.py`, and who answers in `openai.py` (a
server) and `local.py` (a model directory).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from gpt2core.config.judge import Judge as JudgeParams

Preference = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Item:
    """One response to be scored: what was asked, the reference answer, and the answer given."""

    instruction: str
    input: str
    reference: str
    response: str


@dataclass(frozen=True)
class Pair:
    """Two responses to be compared, in the order in which the judge sees them."""

    instruction: str
    input: str
    reference: str
    first: str
    second: str


class Judge(Protocol):
    """Scores responses. `name` stands in the metrics beside the scores, which mean nothing without it."""

    name: str

    def score(self, items: Sequence[Item]) -> list[float | None]:
        """A score from 0 to 100 for each item, in their order; None where it could not be scored."""
        ...

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference | None]:
        """Which response of each pair is better, in their order; None where that could not be told."""
        ...


def make_judges(judge: JudgeParams, seed: int, replies_dir: Path) -> list[Judge]:
    """The judges that the params name, in their order. `seed` is sent with each request of a judge that samples.

    Args:
        judge: the section `judge`.
        seed: of the pipeline.
        replies_dir: where language models' replies are kept, see `Replies`.
    """
    judges: list[Judge] = []
    for kind in judge.kinds():
        if kind == "chrf":
            from gpt2core.evaluation.judges.chrf import ChrfJudge

            judges.append(ChrfJudge())
            continue

        from gpt2core.evaluation.judges.language_model import Chat, LanguageModelJudge

        chats: list[Chat]
        if kind == "openai":
            from gpt2core.evaluation.judges.openai import OpenAIChat  # the client takes half a second to import

            chats = [OpenAIChat(judge, model, seed) for model in judge.models()]
        else:
            from gpt2core.evaluation.judges.local import local_chat

            chats = [local_chat(Path(judge.model_dir or ""))]
        judges += [LanguageModelJudge(chat, replies_dir, judge.min_coverage) for chat in chats]
    return judges
