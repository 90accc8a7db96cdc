"""The code that decides a stage's outputs: its import closure without observers.

`dvc.yaml` lists these files as the dependencies of each stage (`tools/stage_deps.py` writes them), and the key of a
training checkpoint contains their hashes. So a change of a plot, a command, or tracking reruns no stage.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("gpt2core", "stages")
FILE_NAME = re.compile(r"[\w-][\w./-]{1,99}")

# Observers show or track results, or check params. They cannot change an output's bytes; tests/test_stage_code.py.
OBSERVERS = (
    "gpt2core.__main__",
    "gpt2core.cli",
    "gpt2core.doctor",
    "gpt2core.inspect",
    "gpt2core.learn",
    "gpt2core.params",
    "gpt2core.project",
    "gpt2core.report",
    "gpt2core.serve",
    "gpt2core.stage_code",
    "gpt2core.tracking",
    "gpt2core.ui",
)


@cache
def stage_files(stage: str) -> tuple[Path, ...]:
    """Return the modules and package data that decide a stage's outputs.

    A module counts if the stage's script reaches it by imports, those inside of functions included. Imports for type
    checkers do not count. Package data counts if a reached module contains its name as a string. `gpt2core/__init__.py`
    does not count: it only gives names of other modules.

    Args:
        stage: name in `dvc.yaml`, such as `finetune-classify`; what follows an `@` is ignored.

    Returns:
        Paths relative to the project, sorted.
    """
    reached: set[str] = set()
    waiting = [f"{_scripts()}.{stage.partition('@')[0].replace('-', '_')}"]
    while waiting:
        module = waiting.pop()
        if module in reached or module == "gpt2core" or is_observer(module):
            continue
        reached.add(module)
        waiting += [*_imports(module), *_parents(module)]
    paths = {file for module in reached for file in (_path(module), *_package_data(module))}
    return tuple(sorted(path.relative_to(ROOT) for path in paths if path is not None))


def stages() -> list[str]:
    """Return the names of all stages."""
    folder = ROOT.joinpath(*_scripts().split("."))
    return sorted(path.stem.replace("_", "-") for path in folder.glob("*.py") if path.stem != "__init__")


def _scripts() -> str:
    """Return the package of the stages' scripts. In the repository `gpt2core/stages` is a link, in a wheel a copy."""
    link = ROOT / "gpt2core/stages"
    return "gpt2core.stages" if link.is_dir() and not link.is_symlink() else "stages"


def is_observer(module: str) -> bool:
    """Return whether a module of this project is an observer."""
    return any(module == observer or module.startswith(f"{observer}.") for observer in OBSERVERS)


def _path(module: str) -> Path | None:
    """Return the file of a module of this project, or None if there is no such module."""
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _parents(module: str) -> list[str]:
    """Return the packages that Python imports before a module."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), path)


def _imports(module: str) -> Iterator[str]:
    """Yield the modules of this project that a module imports anywhere, but not for type checkers only."""
    path = _path(module)
    assert path is not None
    for node in _executed(_tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            if node.level or (node.module == "gpt2core" and not all(map(_path, names))):
                raise ValueError(f"{path}, line {node.lineno}: name the module: from gpt2core.MODULE import NAME")
            names.append(str(node.module))
        yield from (name for name in names if name.split(".")[0] in PACKAGES and _path(name))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below, except what `if TYPE_CHECKING` contains."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (node for branch in child.orelse for node in (branch, *_executed(branch)))
            continue
        yield child
        yield from _executed(child)


def _package_data(module: str) -> set[Path]:
    """Return the data files whose names a module contains: next to it, or in a data folder of the package."""
    path = _path(module)
    assert path is not None
    constants = (node.value for node in ast.walk(_tree(path)) if isinstance(node, ast.Constant))
    names = {value for value in constants if isinstance(value, str) and FILE_NAME.fullmatch(value)}
    paths: set[Path] = set()
    for place in (base / name for name in names for base in (path.parent, ROOT / "gpt2core")):
        if place.is_dir() and not any(place.rglob("*.py")):
            paths |= {file for file in place.rglob("*") if file.is_file()}
        elif place.is_file() and place.suffix != ".py":
            paths.add(place)
    return paths
