"""What an examination finds, one line a finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """level: `problem` stops a run; `warning` may cost time or results; `note` is good to know.

    remedy: what to do, in one sentence or as lines to copy; empty where there is nothing to do.
    """

    level: Level
    area: str
    what: str
    remedy: str = ""
