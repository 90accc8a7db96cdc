"""Where training checkpoints are stored: a folder that one process at a time has, and may write to.

`LocalFolder` is on a disk, of this machine or shared; `object_store.ObjectStore` is on an object store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gpt2core import files

SAVING = "saving.tmp"
PROCESS = uuid.uuid4().hex


class StoreError(OSError):
    """An object store that cannot be reached, or refuses a request. An object that is missing is another error."""


@dataclass(frozen=True)
class Entry:
    """A file of a storage."""

    n_bytes: int
    modified_s: float  # seconds since 1970


class Storage(ABC):
    """A folder of checkpoints. Files appear in it complete or not at all.

    Attributes:
        location: the root, a path or a URL, and this folder below it; see `object_store.open_storage`.
        scratch: a folder on a disk of this machine, for files that are written before they are stored.
        is_shared: whether other machines may use it.
        expiry: when the folder of a killed process becomes free, for messages.
    """

    location: tuple[str, str]
    scratch: Path
    is_shared = False
    expiry = ""

    @property
    def temporary(self) -> Path:
        """Return the path of a file that this process writes before it is stored; it creates the folder."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        return self.scratch / f"{PROCESS}.{SAVING}"

    def __str__(self) -> str:
        return "/".join(filter(None, self.location))

    @abstractmethod
    def child(self, name: str) -> Storage:
        """Return a folder in this one."""

    @abstractmethod
    def entries(self) -> dict[str, Entry]:
        """Return all files in this folder and below, by their names relative to it."""

    @abstractmethod
    def put(self, path: Path, name: str) -> None:
        """Store a file of `scratch`, which may then be missing from there."""

    @abstractmethod
    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """Provide a file for reading as one of this machine. Raises FileNotFoundError if it is missing."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a small file. Raises FileNotFoundError if it is missing."""

    @abstractmethod
    def write(self, name: str, text: str) -> None:
        """Store a small file."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, unless it is missing."""

    @abstractmethod
    def delete(self) -> None:
        """Remove the folder, with its lock."""

    @abstractmethod
    def guard(self) -> AbstractContextManager[object]:
        """Exclude other processes while this one removes and locks folders in this folder."""

    @abstractmethod
    def acquire(self, *, wait: bool) -> bool:
        """Reserve the folder for this process; return whether it is reserved, which without `wait` may be false."""

    @abstractmethod
    def release(self) -> None:
        """Let other processes have the folder."""

    @abstractmethod
    def check(self) -> None:
        """Check that the folder is still reserved for this process. Raises UserError if it is not."""

    @property
    @abstractmethod
    def is_lost(self) -> bool:
        """Whether another process has taken the folder over."""

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file; an empty dict if it is missing or damaged."""
        try:
            return dict(json.loads(self.read(name)))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def write_json(self, name: str, value: Any) -> None:
        """Store a JSON file."""
        self.write(name, json.dumps(value, indent=2) + "\n")


class LocalFolder(Storage):
    """A folder of a file system. A file lock next to it reserves it, until its process ends for any reason.

    Files are renamed without fsync: if a power cut damages the newest checkpoint, its checksum differs, and the one
    before it has been on the disk for long.
    """

    def __init__(self, root: Path, name: str = "", is_shared: bool = False):
        self.location, self.is_shared = (str(root), name), is_shared
        self.scratch = root / name
        self._lock_path = self.scratch.with_name(f"{self.scratch.name}.lock")
        self._lock: FileLock | None = None

    def child(self, name: str) -> LocalFolder:
        root, own = self.location
        return LocalFolder(Path(root), f"{own}/{name}" if own else name, self.is_shared)

    def entries(self) -> dict[str, Entry]:
        found = {}
        for folder, _, names in os.walk(self.scratch):  # unlike `Path.rglob`, it works while others write and remove
            for path in (Path(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    found[path.relative_to(self.scratch).as_posix()] = Entry(stat.st_size, stat.st_mtime)
        return found

    def put(self, path: Path, name: str) -> None:
        path.replace(self.scratch / name)

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        yield self.scratch / name

    def read(self, name: str) -> bytes:
        return (self.scratch / name).read_bytes()

    def write(self, name: str, text: str) -> None:
        files.write_text(self.scratch / name, text)

    def remove(self, name: str) -> None:
        (self.scratch / name).unlink(missing_ok=True)

    def delete(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)  # a process that waits for it notices this, and creates a new one

    def guard(self) -> AbstractContextManager[object]:
        return files.lock(self.scratch / "states.lock")

    def acquire(self, *, wait: bool) -> bool:
        self._lock = self._lock or files.lock(self._lock_path)
        with contextlib.suppress(Timeout):
            self._lock.acquire(timeout=-1 if wait else 0)
        return self._lock.is_locked

    def release(self) -> None:
        if self._lock:
            self._lock.release()

    def check(self) -> None:
        """Do nothing: no process can take over a lock."""

    @property
    def is_lost(self) -> bool:
        return False
