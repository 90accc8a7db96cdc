"""The states of commits, which never change: read by one process of Git, and kept from one command to the next.

A project may have thousands of experiments, and reading a state takes a tenth of a second. The states are kept in
`.dvc/tmp`, which may be deleted at any time. There is also a list of the experiments that MLflow has in full.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from gpt2core.tracking import flatten, state
from gpt2core.tracking.state import State, read_state

FILE = ".dvc/tmp/gpt2core-states.db"
TABLES = """
CREATE TABLE IF NOT EXISTS states (commit_id TEXT, code TEXT, state TEXT, PRIMARY KEY (commit_id, code));
CREATE TABLE IF NOT EXISTS synced (store TEXT, commit_id TEXT, run_id TEXT, PRIMARY KEY (store, commit_id));
"""


class ObjectReader:
    """Reads files of commits, in a folder of a repository, by one process of Git."""

    def __init__(self, root: Path) -> None:
        command = ["git", "cat-file", "--batch"]
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):  # Git is not installed
            self._process = subprocess.Popen(
                command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )

    def read(self, commit: str, path: str) -> bytes | None:
        """Return the content of a file; None if the commit or the file does not exist."""
        if self._process is None or self._process.poll() is not None:
            return None
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(f"{commit}:./{path}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:  # it has just ended
            return None
        kind = self._process.stdout.readline().split()[1:]  # after the name: type and size, or `missing`
        if len(kind) != 2:
            return None
        content = self._process.stdout.read(int(kind[1]) + 1)[:-1]
        return content if kind[0] == b"blob" else None


@lru_cache(maxsize=4)
def object_reader(root: Path) -> ObjectReader:
    """Return the reader of a folder. Its process ends with this one."""
    return ObjectReader(root)


class CommitStates:
    """The states of a project's commits. What cannot be kept is read again."""

    def __init__(self, root: Path) -> None:
        self._objects, self._path = object_reader(root), root / FILE
        code = b"".join(Path(str(module.__file__)).read_bytes() for module in (state, flatten))
        self._code = hashlib.sha256(code).hexdigest()[:16]
        self._known: dict[str, State | None] = {}

    def get(self, commit: str) -> State | None:
        """Return the state of a commit, whose stages have a hash in the place of their dependencies."""
        if commit not in self._known:
            self._known[commit] = self._kept(commit) or self._read(commit)
        return self._known[commit]

    def synced(self, store: str) -> dict[str, str]:
        """Return the commits that a store of MLflow has in full, with their runs."""
        return dict(self._query("SELECT commit_id, run_id FROM synced WHERE store = ?", store))

    def note_synced(self, store: str, commit: str, run_id: str) -> None:
        """Note that a store has all of a commit in a run."""
        self._query("INSERT OR REPLACE INTO synced VALUES (?, ?, ?)", store, commit, run_id)

    def _kept(self, commit: str) -> State | None:
        rows = self._query("SELECT state FROM states WHERE commit_id = ? AND code = ?", commit, self._code)
        return State(**json.loads(rows[0][0])) if rows else None

    def _read(self, commit: str) -> State | None:
        found = read_state(lambda path: self._objects.read(commit, path))
        if found is None:
            return None
        stages = {name: _shortened(entry) for name, entry in found.stages.items()}
        values = {"params": found.params, "stages": stages, "metrics": found.metrics}
        text = json.dumps(values, default=str)
        self._query("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", commit, self._code, text)
        return State(**values)

    def _query(self, query: str, *values: str) -> list[Any]:
        """Run a query; it has no rows if the project is not one of DVC, or the disk refuses."""
        if not self._path.parents[1].is_dir():
            return []
        try:
            return _connected(self._path).execute(query, values).fetchall()
        except (sqlite3.Error, OSError):
            _connected.cache_clear()
            return []


@lru_cache(maxsize=4)
def _connected(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(exist_ok=True)
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")  # what a crash loses is read again
    database.executescript(TABLES)
    return database


def _shortened(entry: dict[str, Any]) -> dict[str, Any]:
    deps = json.dumps(entry.get("deps"), sort_keys=True, default=str)
    return {**entry, "deps": hashlib.sha256(deps.encode()).hexdigest()[:16]}
