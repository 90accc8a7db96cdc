"""Who may import whom, and that dvc.yaml's deps are just what a stage's script reaches."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
GROUND = {"errors", "config", "contradictions", "runtime", "files", "prompts", "numerics"}
# What each part may import, beside the ground and itself.
ALLOWED: dict[str, set[str]] = {
    "tokenizer": set(),
    "model": set(),
    "generate": {"model"},
    "data": {"tokenizer"},
    "weights": {"model", "tokenizer"},
    "train": {"model", "tokenizer", "generate", "data", "weights"},
    "evaluate": {"model", "tokenizer", "generate", "data", "weights"},
    "inspect": {"model", "tokenizer", "generate"},
    "track": set(),
    "serve": {"model", "tokenizer", "generate", "weights", "train"},  # track reads its files, and imports none
    "report": {"model", "tokenizer", "generate", "data", "weights", "train", "evaluate", "inspect", "track"},
    "doctor": {"model", "tokenizer", "data", "weights", "train", "track"},
    "learn": {"weights"},  # the written-out GPT opens model directories; nothing imports learn
    "ui": {"model", "tokenizer", "generate", "weights", "train", "evaluate", "inspect", "report"},
    "cli": {
        "model",
        "tokenizer",
        "generate",
        "data",
        "weights",
        "train",
        "evaluate",
        "inspect",
        "track",
        "report",
        "ui",
        "doctor",
    },
}


def part(module: str) -> str:
    """gpt2core.model.gpt -> model; gpt2core itself -> ''"""
    return module.split(".")[1] if "." in module else ""


def path_of(module: str) -> Path | None:
    base = ROOT / Path(*module.split("."))
    return next((p for p in (base / "__init__.py", base.with_suffix(".py")) if p.exists()), None)


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules of this project that a file imports anywhere, inside functions too; not those for type checkers."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(child) for node in for_types for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(m for m in found if m.split(".")[0] in ("gpt2core", "stages", "benchmarks") and path_of(m))


def closure(path: Path) -> set[str]:
    """Every module of the package that a file reaches. The package's own lazy __init__ is no way further."""
    seen: set[str] = set()
    todo = set(imports(path))
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            if module != "gpt2core":
                parents = {module.rsplit(".", n)[0] for n in range(1, module.count("."))}
                todo |= imports(path_of(module)) | parents  # type: ignore[arg-type, operator]
    return seen


def dependency(module: str) -> str | None:
    """What dvc.yaml should list for a module: its file, or its subpackage's folder."""
    name = part(module)
    if not name:
        return None  # __init__.py holds the version and a lazy load()
    return f"gpt2core/{name}" if (ROOT / "gpt2core" / name).is_dir() else f"gpt2core/{name}.py"


MODULES = sorted((ROOT / "gpt2core").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        assert module.split(".")[0] == "gpt2core", f"{path} imports {module}"
        if own in ALLOWED and part(module):
            assert part(module) in ALLOWED[own] | GROUND | {own}, f"{own} must not import {module}"
        elif own in GROUND and part(module):
            assert part(module) in GROUND, f"the ground must not import {module}"


def stage_definitions() -> list[tuple[str, dict]]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return [(name, stage.get("do", stage)) for name, stage in stages.items()]


@pytest.mark.parametrize(("name", "stage"), stage_definitions(), ids=lambda value: value if type(value) is str else "")
def test_deps_are_the_import_closure(name: str, stage: dict) -> None:
    script = Path("stages") / f"{name.replace('-', '_')}.py"
    cmd = stage["cmd"].replace("${pretrain.launcher}", "python")
    assert f"python -m stages.{script.stem}" in cmd
    code = {dep for dep in stage["deps"] if dep.startswith(("gpt2core", "stages"))}
    reached = {str(script), *filter(None, map(dependency, closure(ROOT / script)))}
    if name == "fetch-openai-weights":
        reached.add("gpt2core/assets/openai-tiny")  # a file that it reads, not imports
    assert code == reached


def test_importing_the_package_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, gpt2core; print([m for m in ('torch', 'mlflow', 'pandas', 'tiktoken') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
