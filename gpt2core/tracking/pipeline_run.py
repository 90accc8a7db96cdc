"""The pipeline run that a process belongs to, and the tags of its MLflow runs."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import uuid
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from gpt2core import runtime

if TYPE_CHECKING:
    import psutil


class Pipeline(NamedTuple):
    """What all stages of one pipeline run have in common: the value of the parent's tag, and the parent's name."""

    key: str
    name: str


def current_pipeline(stage: str, revision: str | None) -> Pipeline:
    """Return the pipeline run of this process: a DVC experiment, else the enclosing `dvc repro`, else the process."""
    at_revision = f" {revision[:7]}" if revision else ""
    if experiment := os.environ.get("DVC_EXP_NAME"):
        baseline = os.environ.get("DVC_EXP_BASELINE_REV", "")
        return Pipeline(experiment_key(experiment, baseline), experiment)
    if (process := _outermost_dvc()) is not None:
        return Pipeline(f"process:{process.pid}:{process.create_time():.2f}", f"repro{at_revision}")
    return Pipeline(f"by-hand:{uuid.uuid4().hex}", f"{stage}{at_revision}")


def experiment_key(name: str, baseline: str) -> str:
    """Return the tag of a DVC experiment's parent run."""
    return re.sub(r"[^\w.:/+-]", "_", f"experiment:{name}:{baseline}")


def _outermost_dvc() -> psutil.Process | None:
    import psutil

    outermost = None
    for process in psutil.Process().parents():  # from the nearest on
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
            if is_dvc(process.cmdline()):
                outermost = process
    return outermost


def is_dvc(command: list[str]) -> bool:
    """Return whether a command line is DVC's: `dvc …`, `python /path/to/dvc …` or `python -m dvc …`."""
    names = [PurePath(word).name.lower().removesuffix(".exe") for word in command]
    if not names or names[0] == "dvc":
        return bool(names)
    script = next((name for name in names[1:] if not name.startswith("-")), "")
    return names[0].startswith("python") and script == "dvc"


def common_tags(revision: str | None) -> dict[str, str]:
    """Return the tags of both parent and child: where the code came from, and what decides the last bits."""
    tags = {
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME"),
        "dvc_exp_baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "git_revision": revision,
        "mlflow.source.git.commit": revision and revision.removesuffix("-dirty"),  # an experiment's baseline
    }
    return {key: value for key, value in (tags | runtime.environment()).items() if value}


def git_revision(root: Path | None = None) -> str | None:
    """Return the commit, with `-dirty` if a tracked file differs from it; None outside Git.

    Args:
        root: by default the working directory. dvc.lock and metrics/ do not count: every run writes them.
    """
    if (revision := git("rev-parse", "HEAD", cwd=root)) is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!metrics", cwd=root)
    return f"{revision}-dirty" if changed or _params_changed(root or Path.cwd()) else revision


def _params_changed(root: Path) -> bool:
    """Return whether params.yaml differs from the commit's, by its content.

    Git compares size and time first. Both can be equal after `dvc exp run --temp -S lr=2`, which writes the file twice.
    """
    path = root / "params.yaml"
    committed = git("show", "HEAD:./params.yaml", cwd=root, strip=False)
    return committed is not None and path.exists() and path.read_text(encoding="utf-8") != committed


def git(*arguments: str, cwd: Path | None = None, strip: bool = True) -> str | None:
    """Return the output of a git command in a folder, by default the working directory; None if it fails."""
    try:
        completed = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, encoding="utf-8", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if completed.returncode:
        return None
    return completed.stdout.strip() if strip else completed.stdout
