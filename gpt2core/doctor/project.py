"""Checks of the project's files: params, models, and files that Git does not track."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2core import config
from gpt2core.checkpoint.config_json import read_config_json
from gpt2core.doctor.finding import MAX_NAMED, Finding, some_of
from gpt2core.errors import UserError

CODE = ("gpt2core", "stages", "data/own", "params.yaml", "dvc.yaml")  # an experiment's copy has what Git tracks
FOREIGN_WEIGHTS = ("pytorch_model.bin", "*.pt", "*.pth", "*.ckpt")


def parameters(root: Path) -> Iterator[Finding]:
    """Check that params.yaml has all keys of this version; the remedy is the missing lines."""
    path, profile = root / "params.yaml", root / "profiles" / "embedded.yaml"
    try:
        params, embedded = config.read_yaml(path), config.read_yaml(profile)
    except UserError as error:
        yield Finding("problem", "params", str(error), "make profile NAME=embedded")
        return
    if not isinstance(params, dict):
        return  # load_params reports it
    missing = missing_lines(params, profile.read_text(encoding="utf-8"))
    if missing:
        n = sum(line.startswith("  ") or not line.endswith(":") for line in missing)
        remedy = "\n".join(["add to it, with values of your own:", *missing])
        yield Finding("problem", "params", f"params.yaml is of an older version: it lacks {n} key(s)", remedy)
    elif params == embedded:
        yield Finding("ok", "params", "params.yaml is the profile embedded")
    else:
        yield Finding("ok", "params", "params.yaml has every key of this version")


def missing_lines(params: dict[str, Any], profile: str) -> list[str]:
    r"""Return the lines of a profile's text whose keys `params` lacks, each section under its name.

    >>> missing_lines({"a": {"b": 1}}, "a:\n  # what\n  b: 2\n  c: 3  # thrice\n\nd: 4\n")
    ['a:', '  c: 3  # thrice', 'd: 4']
    """
    lines: list[str] = []
    section = ""
    for line in profile.splitlines():
        key = line.strip().partition(":")[0]
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line.startswith(" "):
            section = key
            if section not in params:
                lines.append(line)
            continue
        values = params.get(section, {})
        if isinstance(values, dict) and key not in values:
            if section in params and f"{section}:" not in lines:
                lines.append(f"{section}:")
            lines.append(line)
    return lines


def git(root: Path) -> Iterator[Finding]:
    """Check that this is a Git repository that tracks every file an experiment's copy needs."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--others", "--exclude-standard", "-z", "--", *CODE],
            cwd=root, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("problem", "git", f"cannot be run ({error})", "install git")
        return
    if listed.returncode:
        yield Finding("problem", "git", "this folder is no repository", "git init && git add --all && git commit")
        return
    untracked = [name for name in listed.stdout.split("\0") if name]
    if untracked:
        missed = f"`dvc exp run --queue` and `--temp` would miss {len(untracked)} file(s): {some_of(untracked)}"
        yield Finding("warning", "git", missed, f"git add -N {' '.join(untracked[:MAX_NAMED])}")
    else:
        yield Finding("ok", "git", "experiments see every file that a stage reads")


def model_directories(root: Path) -> Iterator[Finding]:
    """Check that this version reads each directory under models/, by its config.json, without reading weights."""
    n_read = 0
    for folder in sorted(path for path in (root / "models").rglob("*") if path.is_dir()):
        name = folder.relative_to(root)
        if not (folder / "config.json").exists():
            if _has_pickle(folder):
                yield Finding(
                    "problem", "models", f"{name} holds weights as pickle, which this project does not read",
                    "save them as safetensors with the program that made them",
                )  # fmt: skip
            continue
        try:
            read_config_json(folder / "config.json")
        except UserError as error:
            yield Finding(
                "problem", "models", str(error), f"made by another version? dvc repro, or: gpt2core verify {name}"
            )
            continue
        if not next(folder.glob("model*.safetensors"), None):
            remedy = "save it with save_pretrained(…, safe_serialization=True)" if _has_pickle(folder) else "dvc repro"
            yield Finding("problem", "models", f"{name} has no model.safetensors", remedy)
        elif not (folder / "vocab.json").exists() and not (folder / "tokenizer.json").exists():
            yield Finding("warning", "models", f"{name} has no tokenizer: text cannot be read or written", "dvc repro")
        else:
            n_read += 1
    yield Finding("ok", "models", f"{n_read} model directories that this version reads")


def _has_pickle(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in FOREIGN_WEIGHTS)
