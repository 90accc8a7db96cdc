"""Hashes of a stage's inputs and outputs, as DVC computes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from gpt2core.tracking.state import locked_stages, of_directory


def input_hashes(paths: Iterable[str | Path], root: Path = Path()) -> dict[str, str]:
    """Return the MD5 of each path as DVC has it: of a folder, that of dvc.lock, also of a folder that contains it.

    A folder that is not in dvc.lock is left out.
    """
    stages = locked_stages(of_directory(root))
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", []) if "md5" in out}
    hashes = {}
    for path in map(Path, paths):
        if (root / path).is_file():
            hashes[path.as_posix()] = _file_md5(root / path)
        elif md5 := next((outs[p.as_posix()] for p in (path, *path.parents) if p.as_posix() in outs), None):
            hashes[path.as_posix()] = md5.removesuffix(".dir")
    return hashes


def folder_md5(folder: Path) -> str | None:
    """Return a folder's MD5 as in dvc.lock, of all its files' names and MD5s; None if there is no such folder."""
    if not folder.is_dir():
        return None
    paths = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.parts)
    rows = [{"md5": _file_md5(path), "relpath": path.relative_to(folder).as_posix()} for path in paths]
    return f"{hashlib.md5(json.dumps(rows, sort_keys=True).encode(), usedforsecurity=False).hexdigest()}.dir"


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
