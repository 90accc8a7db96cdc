"""The state of a pipeline in a directory or a commit: its params, and the results that belong to them.

A file in metrics/ may be older than the params, or than an earlier stage. dvc.lock tells: it has the params and the
inputs with which each stage ran last.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gpt2core.tracking.flatten import flatten, numbers

Read = Callable[[str], bytes | None]  # a file's content by its path in the project; None if it is missing
Stages = dict[str, dict[str, Any]]  # entries of dvc.lock


@dataclass(frozen=True)
class State:
    """Params, and the results that belong to them.

    params: content of params.yaml. stages: entries of dvc.lock, of stages that ran with these params. metrics: content
    of these stages' files in metrics/, by the stage's name.
    """

    params: dict[str, Any]
    stages: Stages = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def table(self) -> dict[str, float]:
        """All numbers, as `<stage>.<metric>`."""
        rows = ((stage, numbers(metrics)) for stage, metrics in self.metrics.items())
        return {metric_name(stage, key): value for stage, values in rows for key, value in values.items()}

    @cached_property
    def deciding_params(self) -> dict[str, Any]:
        """The params that decide results, flattened: all except what MLflow gets."""
        return flatten({name: value for name, value in self.params.items() if name != "mlflow"})

    @cached_property
    def fingerprint(self) -> str:
        """A hash of params and results, the same wherever they are read."""
        text = json.dumps({"params": self.deciding_params, "table": self.table}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def metric_name(stage: str, key: str) -> str:
    """Return the name of a stage's metric on the parent run. MLflow allows no @ in it.

    >>> metric_name("convert@124M", "parameters")
    'convert_124M.parameters'
    """
    prefix = re.sub(r"[^\w./ -]", "_", stage)
    return f"{prefix}.{key}"


def file_stem(stage: str) -> str:
    """Return the name of a stage's files in metrics/ and metrics/plots/, without the suffix."""
    return stage.replace("-", "_")


def of_directory(root: Path) -> Read:
    """Return a function that reads the files of a folder."""

    def read(path: str) -> bytes | None:
        try:
            return (root / path).read_bytes()
        except OSError:
            return None

    return read


def read_state(read: Read, running: str | None = None) -> State | None:
    """Return the state, or None if there are no params.

    Args:
        read: reads the files.
        running: a stage that has just ended, which is not in dvc.lock yet. Its new outputs belong to the state, and
            what was made from its earlier ones does not.
    """
    params, stages = _yaml(read("params.yaml")), locked_stages(read)
    if params is None:
        return None
    written = {name: _metrics(name, stage, read, running) for name, stage in stages.items()}
    changed = {name for name, stage in stages.items() if name != running and _has_other_params(stage, params)}
    changed |= {name for name, metrics in written.items() if metrics is None and name != running}
    if running and not _is_as_locked(stages.get(running, {}), read):
        changed.add(running)
    stale = _downstream(stages, changed) - {running}
    results = {name: metrics for name, metrics in written.items() if name not in stale and metrics}
    if running and running not in results and (content := read(f"metrics/{file_stem(running)}.json")):
        results[running] = json.loads(content)
    return State(params, {name: stage for name, stage in stages.items() if name not in stale}, results)


def locked_stages(read: Read) -> Stages:
    """Return the entries of dvc.lock; none if it is missing or damaged."""
    return (_yaml(read("dvc.lock")) or {}).get("stages") or {}


def _metrics(name: str, stage: dict[str, Any], read: Read, running: str | None) -> dict[str, Any] | None:
    """Return the content of a stage's metrics file: {} if it has none, None if the file is not the one in dvc.lock."""
    path = f"metrics/{file_stem(name)}.json"
    md5 = next((out.get("md5", "") for out in stage.get("outs", []) if out["path"] == path), None)
    if md5 is None:
        return {}
    content = read(path) or b""
    if name != running and _md5(content) != md5:
        return None
    try:
        metrics = json.loads(content)
    except ValueError:
        return None
    return metrics if isinstance(metrics, dict) else None


def _is_as_locked(stage: dict[str, Any], read: Read) -> bool:
    """Return whether the stage's metrics are the bytes of dvc.lock. Then its other outputs are, too."""
    hashes = {out["path"]: out.get("md5") for out in stage.get("outs", []) if out["path"].startswith("metrics/")}
    return bool(hashes) and all(_md5(read(path) or b"") == md5 for path, md5 in hashes.items())


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
    return f"{_md5(json.dumps(rows, sort_keys=True).encode())}.dir"


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _has_other_params(stage: dict[str, Any], params: dict[str, Any]) -> bool:
    """Return whether a stage ran with other params than these."""
    flat = flatten(params)
    return any(
        flatten({key: value}) != {name: v for name, v in flat.items() if name == key or name.startswith(f"{key}.")}
        for key, value in stage.get("params", {}).get("params.yaml", {}).items()
    )


def _downstream(stages: Stages, changed: set[str]) -> set[str]:
    """Return the changed stages, and all that read an output of these or one that was made again."""
    makers = {out["path"]: (name, out.get("md5")) for name, stage in stages.items() for out in stage.get("outs", [])}
    stale = set(changed)
    while True:
        more = {
            name
            for name, stage in stages.items()
            if name not in stale and any(_is_stale(dep, makers, stale) for dep in stage.get("deps", []))
        }
        if not more:
            return stale
        stale |= more


def _is_stale(dep: dict[str, Any], makers: dict[str, tuple[str, str | None]], stale: set[str]) -> bool:
    for path in (dep["path"], *map(str, Path(dep["path"]).parents)):
        if path in makers:
            maker, md5 = makers[path]
            return maker in stale or (path == dep["path"] and md5 != dep.get("md5"))
    return False


def _yaml(content: bytes | None) -> dict[str, Any] | None:
    """Return a YAML file's mapping, read as DVC does; None if there is none."""
    try:
        mapping = YAML(typ="safe").load(content.decode()) if content else None
    except (YAMLError, UnicodeDecodeError):
        return None
    return mapping if isinstance(mapping, dict) else None
