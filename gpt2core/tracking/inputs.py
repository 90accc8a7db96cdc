"""A stage's inputs by their contents: as tags `input.<path>`, and as MLflow's datasets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def input_hashes(paths: Iterable[str | Path], lock: Path = Path("dvc.lock")) -> dict[str, str]:
    """The MD5 of each path, as DVC knows it: of a folder what dvc.lock says of it or of the output that it lies in.

    A folder that no stage made, or before DVC has written it down, has none and is left out.
    """
    found = {}
    outs = _outs(lock)
    for path in map(Path, paths):
        if path.is_file():
            with path.open("rb") as file:
                found[path.as_posix()] = hashlib.file_digest(file, "md5").hexdigest()
            continue
        known = next((outs[p.as_posix()] for p in (path, *path.parents) if p.as_posix() in outs), None)
        if known:
            found[path.as_posix()] = known.removesuffix(".dir")
    return found


def folder_md5(folder: Path) -> str | None:
    """A folder's MD5 as dvc.lock has it, of all its files' names and MD5s; None where there is no such folder."""
    if not folder.is_dir():
        return None
    rows = []
    for path in sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.parts):
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        rows.append({"md5": md5, "relpath": path.relative_to(folder).as_posix()})
    return f"{hashlib.md5(json.dumps(rows, sort_keys=True).encode(), usedforsecurity=False).hexdigest()}.dir"


def _outs(lock: Path) -> dict[str, str]:
    try:
        stages = (YAML(typ="safe").load(lock.read_text(encoding="utf-8")) or {}).get("stages") or {}
    except (OSError, YAMLError):
        return {}
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", []) if "md5" in out}


def log_datasets(client: MlflowClient, run_id: str, hashes: Mapping[str, str]) -> None:
    """Show the inputs as datasets of a run; what their content is, dvc.lock and DVC's cache know by the hash."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    datasets = []
    for path, md5 in hashes.items():
        context = "base model" if path.startswith("models/") else "training"
        source = json.dumps({"path": path, "md5": md5})
        tags = [InputTag("mlflow.data.context", context)]
        datasets.append(DatasetInput(Dataset(path, md5, "dvc", source), tags))
    if datasets:
        client.log_inputs(run_id, datasets)
