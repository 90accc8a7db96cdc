"""Checks of the project's files: params, models, and files that Git does not track."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from gpt2core import files
from gpt2core.checkpoint.config_json import read_config_json
from gpt2core.config import read_yaml
from gpt2core.doctor import MAX_NAMED, Finding, Level, some_of
from gpt2core.errors import UserError, first_line
from gpt2core.params.load import command_for, missing, read_values
from gpt2core.params.schema import defaults
from gpt2core.params.update import updated
from gpt2core.tracking import pipeline_run

CODE = ("gpt2core", "stages", "data/own", "params.yaml", "dvc.yaml")  # an experiment's copy has what Git tracks
FOREIGN_WEIGHTS = ("pytorch_model.bin", "*.pt", "*.pth", "*.ckpt")


def parameters(root: Path) -> Iterator[Finding]:
    """Check that params.yaml has the keys and names of this version; the remedy is what `gpt2core params` changes."""
    path = root / "params.yaml"
    try:
        values = read_values(path)
        changes = updated(files.read_text(path), path)[1]
    except UserError as error:
        yield Finding("problem", "params", str(error), "fix it, or: make profile NAME=embedded FORCE=1")
        return
    if changes:
        level: Level = "problem" if missing(values) else "warning"
        what = f"params.yaml is from an older version; {len(changes)} changes bring it up to date"
        yield Finding(level, "params", what, "\n".join([command_for("params"), *changes]))
    elif values == defaults():
        yield Finding("ok", "params", "params.yaml is the profile embedded")
    else:
        yield Finding("ok", "params", "params.yaml has every key of this version")


def git(root: Path) -> Iterator[Finding]:
    """Check that this is a Git repository that tracks every file an experiment's copy needs."""
    listed = pipeline_run.git("ls-files", "--others", "--exclude-standard", "-z", "--", *CODE, cwd=root)
    if shutil.which("git") is None:
        yield Finding("problem", "git", "cannot be run", "install git")
    elif listed is None:
        yield Finding("problem", "git", "this folder is no repository", "git init && git add --all && git commit")
    elif untracked := listed.split("\0")[:-1]:
        missed = f"`dvc exp run --queue` and `--temp` would miss {len(untracked)} file(s): {some_of(untracked)}"
        yield Finding("warning", "git", missed, f"git add -N {shlex.join(untracked[:MAX_NAMED])}")
    else:
        yield Finding("ok", "git", "experiments see every file that a stage reads")


def lock_file(root: Path) -> Iterator[Finding]:
    """Check dvc.lock, which DVC does not write atomically: a kill at this moment leaves it cut."""
    import voluptuous
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA

    path = root / "dvc.lock"
    if not path.exists():
        return
    try:
        COMPILED_LOCKFILE_SCHEMA(read_yaml(path))
    except (UserError, voluptuous.Invalid) as error:
        yield Finding(
            "problem", "dvc", f"dvc.lock is cut or damaged ({first_line(error)}), as a kill can leave it",
            "git checkout dvc.lock, then dvc repro, which takes what was finished from DVC's run cache",
        )  # fmt: skip


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
