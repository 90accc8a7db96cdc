"""Notes of stages that went on without tracking, in `$DVC_ROOT/.checkpoints/untracked`, for `gpt2core sync-mlflow`.

One file a pipeline run: which stages MLflow lacks, and the fingerprint of the results that they ended with.
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
    """pipeline: the tag of the parent run, which may be there or not. results: see `State.fingerprint`."""

    pipeline: str
    name: str
    results: str
    stages: list[str]


def folder(root: Path) -> Path:
    return root / ".checkpoints" / "untracked"


def add(root: Path, pipeline: str, name: str, results: str, stage: str) -> None:
    """Note that `stage` of a pipeline run is not in MLflow. Raises OSError."""
    path = _path(root, pipeline)
    with files.lock(root / ".locks" / "untracked.lock", LOCK_TIMEOUT_S):
        earlier = [note for note in read(root) if note.pipeline == pipeline]
        stages = earlier[0].stages if earlier else []
        files.write_json(path, asdict(Note(pipeline, name, results, [*(s for s in stages if s != stage), stage])))


def read(root: Path) -> list[Note]:
    """All notes; a damaged one is none."""
    notes = []
    for path in sorted(folder(root).glob("*.json")):
        try:
            notes.append(Note(**files.read_json(path)))
        except (UserError, TypeError):
            continue
    return notes


def remove(root: Path, pipeline: str) -> None:
    _path(root, pipeline).unlink(missing_ok=True)


def _path(root: Path, pipeline: str) -> Path:
    return folder(root) / f"{hashlib.sha256(pipeline.encode()).hexdigest()[:16]}.json"
