"""Notes of stages that continued without tracking, in `$DVC_ROOT/.checkpoints/untracked`, for `gpt2core sync-mlflow`.

One file per pipeline run: the stages that MLflow lacks, and the fingerprint of the results that they ended with.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2core import files
from gpt2core.errors import UserError

LOCK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Note:
    """pipeline: the tag of the parent run, which may exist or not. results: see `State.fingerprint`."""

    pipeline: str
    name: str
    results: str
    stages: list[str]


def add(root: Path, pipeline: str, name: str, results: str, stage: str) -> None:
    """Note that `stage` of a pipeline run is not in MLflow. Raises OSError."""
    with files.lock(root / ".locks" / "untracked.lock", LOCK_TIMEOUT_S):
        earlier = next((note.stages for note in read(root) if note.pipeline == pipeline), [])
        stages = [*(other for other in earlier if other != stage), stage]
        files.write_json(_path(root, pipeline), asdict(Note(pipeline, name, results, stages)))


def read(root: Path) -> list[Note]:
    """Return all notes, without damaged ones."""
    notes = []
    for path in sorted(_path(root, "").parent.glob("*.json")):
        try:
            notes.append(Note(**files.read_json(path)))
        except (UserError, TypeError):
            continue
    return notes


def remove(root: Path, pipeline: str) -> None:
    """Remove the note of a pipeline run."""
    _path(root, pipeline).unlink(missing_ok=True)


def _path(root: Path, pipeline: str) -> Path:
    return root / ".checkpoints/untracked" / f"{hashlib.sha256(pipeline.encode()).hexdigest()[:16]}.json"
