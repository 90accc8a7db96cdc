"""Who may import whom."""

from __future__ import annotations

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path

import pytest

import gpt2core
from gpt2core.stage_code import is_observer

ROOT = Path(__file__).parent.parent
GROUND = {
    "errors", "config", "deadline", "environment", "executor", "log", "metric_files", "runtime", "files", "prompts",
    "numerics", "redact", "signals", "stage_code",
}  # fmt: skip
# What each part may import, beside the ground and itself.
ALLOWED: dict[str, set[str]] = {
    "tokenizer": set(),
    "model": set(),
    "inference": {"model", "tokenizer"},
    "corpus": {"tokenizer"},
    "tasks": set(),
    "sources": {"corpus", "tasks"},
    "checkpoint": {"model", "tokenizer", "inference"},
    "training": {"model", "tokenizer", "inference", "corpus", "tasks", "checkpoint"},
    "evaluation": {"model", "tokenizer", "inference", "corpus", "tasks", "checkpoint"},
    "inspect": {"model", "tokenizer", "inference"},
    "params": set(),
    "project": {"params"},
    "tracking": {"params", "evaluation", "inference"},
    "serve": {"model", "tokenizer", "inference", "checkpoint"},  # tracking reads its files, and imports none
    "report": {
        "model",
        "tokenizer",
        "inference",
        "corpus",
        "tasks",
        "checkpoint",
        "training",
        "evaluation",
        "inspect",
        "tracking",
    },
    "doctor": {"params", "sources", "checkpoint", "training", "tracking"},
    "learn": {"checkpoint", "sources"},  # it opens model directories and OpenAI's files; nothing imports learn
    "ui": {"model", "tokenizer", "inference", "checkpoint", "training", "evaluation", "inspect", "report"},
    "cli": {
        "params",
        "model",
        "tokenizer",
        "inference",
        "corpus",
        "tasks",
        "sources",
        "checkpoint",
        "training",
        "evaluation",
        "inspect",
        "tracking",
        "report",
        "ui",
        "doctor",
        "project",
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_that_computes_results_imports_no_observer(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if not is_observer(module):
        observers = {name for name in imports(path) if is_observer(name)}
        assert observers <= {"gpt2core.stage_code"}


MAX_LINES, MAX_NESTED = 60, 3


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_flat(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for function in functions:
        n_lines = (function.end_lineno or 0) - function.lineno + 1
        n_nested = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(function)) - 1
        assert n_lines <= MAX_LINES, f"{path}: {function.name} has {n_lines} lines"
        assert n_nested <= MAX_NESTED, f"{path}: {function.name} has {n_nested} nested functions"


@pytest.mark.parametrize("name", [name for name in gpt2core.__all__ if name != "__version__"])
def test_the_public_api_is_documented(name: str) -> None:
    """Each public name, and each public method that a class defines itself, has a docstring."""
    value = getattr(gpt2core, name)
    assert value.__doc__
    if inspect.isclass(value):
        methods = {key: method for key, method in vars(value).items() if inspect.isfunction(method)}
        assert [key for key, method in methods.items() if not key.startswith("_") and not method.__doc__] == []


PEERS = {
    "accelerate",
    "ctranslate2",
    "jupytext",
    "lm_eval",
    "mkdocs",
    "moto",
    "nbclient",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "peft",
    "ray",
    "tensorflow",
    "transformers",
    "trl",
}
TESTS = sorted([*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "tests").rglob("conftest.py")])


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_are_collected_without_peers(path: Path) -> None:
    """`make test` on a fresh machine has no peers; a test takes them by `pytest.importorskip`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    assert not names & PEERS


MAP = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("## Map")[2].partition("\n## ")[0]
MAPPED = [
    "", "config", "params",
    "numerics", "model", "tokenizer", "inference", "corpus", "tasks", "sources", "checkpoint", "training",
    "evaluation", "evaluation/judges", "evaluation/metrics", "evaluation/rating", "tracking",
]  # fmt: skip


@pytest.mark.parametrize("folder", MAPPED, ids=lambda folder: folder or "ground")
def test_the_map_has_a_line_for_each_module(folder: str) -> None:
    section = MAP.partition(f"### `{folder}/`\n" if folder else "### The ground\n")[2].partition("\n### ")[0]
    named = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    files = sorted((ROOT / "gpt2core" / folder).glob("*.py"))
    assert named == [path.name for path in files if not path.name.startswith("__")]


def test_the_map_has_a_line_for_each_folder() -> None:
    folders = {path.name for path in (ROOT / "gpt2core").iterdir() if (path / "__init__.py").exists()}
    assert not [name for name in folders if f"`{name}/`" not in MAP]


@pytest.mark.parametrize("name", sorted(set(gpt2core.__all__) - {"__version__"}))
def test_each_name_of_the_public_api_is_what_type_checkers_see(name: str) -> None:
    tree = ast.parse((ROOT / "gpt2core/__init__.py").read_text(encoding="utf-8"))
    modules = [
        node.module for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]
    ]  # fmt: skip
    (module,) = modules
    assert getattr(gpt2core, name) is getattr(importlib.import_module(module), name)
    assert name in dir(gpt2core)


def test_importing_the_package_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, gpt2core; print([m for m in ('torch', 'mlflow', 'pandas', 'tiktoken') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
