"""A finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]
MAX_NAMED = 5  # names in one line


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        level: `problem` stops a run; `warning` may cost time or results; `note` is good to know.
        area: the part that was checked, in a word.
        what: the finding.
        remedy: what to do, in one sentence or as lines to copy; empty where there is nothing to do.
    """

    level: Level
    area: str
    what: str
    remedy: str = ""


def some_of(names: list[str]) -> str:
    """Return the first names of a list, for one line."""
    return ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
