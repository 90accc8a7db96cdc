"""Checks that this machine and this project can run what the params say; each finding has its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpt2core.doctor.finding import Finding
from gpt2core.errors import UserError
from gpt2core.params import load_params
from gpt2core.params.load import MISSING

__all__ = ["Finding", "examine"]


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
            if not line.strip().endswith(MISSING):  # reported above, with the lines to add
                yield Finding("problem", "params", line.strip(), "fix params.yaml, or: make profile NAME=embedded")
        params = None
    if params is not None:
        yield from machine.compiler(params)
    yield from project.git(root)
    yield from project.model_directories(root)
    yield from stores.dvc(root)
    yield from stores.mlflow(root)
    if params is not None:
        yield from stores.sources_of(params)
        yield from needs.disk(params, root)
        yield from needs.memory(params, root)
