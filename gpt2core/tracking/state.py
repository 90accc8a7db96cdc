"""The state of a pipeline, of the working directory or of a commit: its params, and the results that belong to them.

A file in metrics/ may be older than the params or than a stage before its own. dvc.lock tells: it knows with which
params and on which inputs each stage ran last.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gpt2core.tracking.flatten import flatten, numbers

Read = Callable[[str], bytes | None]  # a file's content by its path in the project; None if it is not there


@dataclass(frozen=True)
class State:
    """params: as they stand in params.yaml. stages: what dvc.lock says of those whose results are the params'.
    metrics: what these wrote to metrics/, by the stage's name."""

    params: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def table(self) -> dict[str, float]:
        """All numbers, as `<stage>.<metric>`."""
        rows = ((stage, numbers(metrics)) for stage, metrics in self.metrics.items())
        return {f"{prefix(stage)}.{key}": value for stage, values in rows for key, value in values.items()}

    @property
    def deciding_params(self) -> dict[str, Any]:
        """The params that decide results, flattened; not what MLflow gets of them."""
        return flatten({name: value for name, value in self.params.items() if name != "mlflow"})

    @property
    def fingerprint(self) -> str:
        """The same for the same params and results, wherever they are read."""
        text = json.dumps({"params": self.deciding_params, "table": self.table}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def prefix(stage: str) -> str:
    """A stage's name as MLflow takes it in a metric's: without the @ of `convert@124M`.

    >>> prefix("convert@124M")
    'convert_124M'
    """
    return re.sub(r"[^\w./ -]", "_", stage)


def of_directory(root: Path) -> Read:
    """Reads the files of a folder."""

    def read(path: str) -> bytes | None:
        try:
            return (root / path).read_bytes()
        except OSError:
            return None

    return read


def read_state(read: Read, running: str | None = None) -> State | None:
    """The state, or None where there are no params.

    Args:
        read: gives the files.
        running: a stage that has just ended, which dvc.lock does not know yet. What it wrote belongs to the state, and
            nothing that was made from what it wrote before.
    """
    params, lock = _yaml(read("params.yaml")), _yaml(read("dvc.lock")) or {}
    if params is None:
        return None
    stages: dict[str, dict[str, Any]] = lock.get("stages") or {}
    written = {name: _metrics(name, stage, read, running) for name, stage in stages.items()}
    changed = {name for name, stage in stages.items() if name != running and _differs(stage, params)}
    changed |= {name for name, found in written.items() if found is None and name != running}
    if running and not _is_as_locked(stages.get(running, {}), read):
        changed.add(running)
    stale = _downstream(stages, changed) - {running}
    metrics = {name: found for name, found in written.items() if name not in stale and found}
    if running and running not in metrics and (content := read(f"metrics/{running.replace('-', '_')}.json")):
        metrics[running] = json.loads(content)
    return State(params, {name: stage for name, stage in stages.items() if name not in stale}, metrics)


def _metrics(name: str, stage: dict[str, Any], read: Read, running: str | None) -> dict[str, Any] | None:
    """What a stage wrote to its metrics file: empty if it has none, None if it is not the one that dvc.lock knows."""
    for out in stage.get("outs", []):
        if re.fullmatch(r"metrics/\w+\.json", out["path"]) and Path(out["path"]).stem == name.replace("-", "_"):
            content = read(out["path"]) or b""
            is_older = name != running and _md5(content) != out.get("md5")
            try:
                found = None if is_older else json.loads(content)
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return {}


def _is_as_locked(stage: dict[str, Any], read: Read) -> bool:
    """Whether the stage's metrics are to the byte those that dvc.lock knows: then so are, surely, its other outputs."""
    known = {out["path"]: out.get("md5") for out in stage.get("outs", []) if out["path"].startswith("metrics/")}
    return bool(known) and all(_md5(read(path) or b"") == md5 for path, md5 in known.items())


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _differs(stage: dict[str, Any], params: dict[str, Any]) -> bool:
    """Whether a stage ran with other params than these."""
    flat = flatten(params)
    for key, value in stage.get("params", {}).get("params.yaml", {}).items():
        wanted = flatten({key: value})
        there = {name: v for name, v in flat.items() if name == key or name.startswith(f"{key}.")}
        if wanted != there:
            return True
    return False


def _downstream(stages: dict[str, dict[str, Any]], changed: set[str]) -> set[str]:
    """The changed stages, all made from what they make, and all that read something else than what was made last."""
    makers = {out["path"]: (name, out.get("md5")) for name, stage in stages.items() for out in stage.get("outs", [])}
    found = set(changed)
    grows = True
    while grows:
        grows = False
        for name, stage in stages.items():
            if name not in found and any(_is_spoiled(dep, makers, found) for dep in stage.get("deps", [])):
                found.add(name)
                grows = True
    return found


def _is_spoiled(dep: dict[str, Any], makers: dict[str, tuple[str, str | None]], stale: set[str]) -> bool:
    for path in (dep["path"], *map(str, Path(dep["path"]).parents)):
        if path in makers:
            maker, md5 = makers[path]
            return maker in stale or (path == dep["path"] and md5 != dep.get("md5"))
    return False


def _yaml(content: bytes | None) -> dict[str, Any] | None:
    """A YAML file's mapping, read as DVC does; None if there is none."""
    try:
        found = YAML(typ="safe").load(content.decode()) if content else None
    except (YAMLError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None
