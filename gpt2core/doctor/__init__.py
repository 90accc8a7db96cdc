"""Checks that this machine and this project can run what the params say; each finding has its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2core.errors import UserError
from gpt2core.params import load_params
from gpt2core.params.load import MISSING
from gpt2core.redact import redacted

Level = Literal["ok", "note", "warning", "problem"]
MAX_NAMED = 5  # names in one line


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report. Secrets in addresses are hidden in it, also in those that a library quotes.

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

    def __post_init__(self) -> None:
        for name in ("what", "remedy"):
            object.__setattr__(self, name, redacted(getattr(self, name)))


def some_of(names: list[str]) -> str:
    """Return the first names of a list, for one line."""
    return ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")


def examine(root: Path) -> Iterator[Finding]:
    """Yield the findings of all checks for the project in the folder `root`."""
    from gpt2core.doctor import machine, needs, project, stores

    yield from machine.python(root)
    yield from machine.torch_and_devices()
    yield from project.parameters(root)
    try:
        params = load_params(root / "params.yaml")
    except UserError as error:
        first, *problems = str(error).splitlines()
        for line in problems or [first]:
            if f": {MISSING}" not in line:  # reported above, with the lines to add
                what, _, update = line.strip().partition("; update it: ")  # code.yaml, see params/code.py
                yield Finding("problem", "params", what, update or "fix params.yaml, or: make profile NAME=embedded")
        params = None
    if params is not None:
        yield from machine.compiler(params)
    yield from project.git(root)
    yield from project.lock_file(root)
    yield from project.model_directories(root)
    yield from stores.dvc(root)
    yield from stores.mlflow(root)
    yield from stores.checkpoints()
    if params is not None:
        yield from stores.sources_of(params)
        yield from needs.disk(params, root)
        yield from needs.memory(params, root)
