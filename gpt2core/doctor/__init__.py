"""Whether this machine and this project are fit to run what the params say; each finding with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpt2core.doctor.finding import Finding
from gpt2core.errors import UserError
from gpt2core.params import load_params
from gpt2core.params.load import MISSING

__all__ = ["Finding", "examine"]


def examine(root: Path, *, measure: bool = True) -> Iterator[Finding]:
    """Look at everything, the quick things first; findings come as they are made.

    Args:
        root: the project's folder.
        measure: whether to take some training steps, in processes of their own, for memory and time.
    """
    from gpt2core.doctor import machine, needs, project, stores

    yield from machine.python(root)
    yield from machine.torch_and_devices()
    yield from project.parameters(root)
    try:
        params = load_params(root / "params.yaml")
    except UserError as error:
        first, *problems = str(error).splitlines()
        for line in problems or [first]:
            if not line.strip().endswith(MISSING):  # reported above
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
        if measure:
            yield from needs.memory_and_time(params, root)
