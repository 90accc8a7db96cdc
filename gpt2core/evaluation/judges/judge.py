"""The interface of a judge, and what it judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Preference = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Item:
    """A response to be scored, with its task and the reference answer."""

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
    """A judge of responses. Its `name` is in the metrics, because scores of different judges are not comparable."""

    name: str

    def score(self, items: Sequence[Item]) -> list[float | None]:
        """Return a score from 0 to 100 for each item, or None if it could not be scored."""
        ...

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference | None]:
        """Return the better response of each pair, or None if it could not be judged."""
        ...
