"""Training checkpoints on an object store, through fsspec: `s3://`, and others that can create an object exclusively.

Credentials come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …) and are in no message.
`checkpoint_root` opens what `GPT2CORE_CHECKPOINTS` names.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gpt2core import config, files
from gpt2core.errors import UserError
from gpt2core.redact import redacted, secret_in_url, without_secret
from gpt2core.training.lease import LEASE_S, Lease
from gpt2core.training.storage import Entry, LocalFolder, Storage, StoreError

VARIABLE = "GPT2CORE_CHECKPOINTS"
MAX_MESSAGE = 300  # characters of a library's error
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


class ObjectStore(Storage):
    """A folder of an object store. A lease reserves it.

    A lock in `scratch` reserves it on this machine, too: a lease of this machine whose lock is free was that of a
    killed process, and is taken over without waiting.
    """

    is_shared = True
    expiry = f", or until {LEASE_S:.0f} s after it was killed"

    def __init__(self, file_system: Any, root: str, name: str, lease: Lease | None = None):
        self.location, self.scratch = (root, name), config.checkpoints_dir() / name
        self._fs, self._lease, self._lock = file_system, lease, LocalFolder(self.scratch)
        self._url = str(self)

    @classmethod
    def open(cls, root: str, name: str = "") -> ObjectStore:
        """Return the folder `name` below the URL `root`. Raises UserError if nothing can open such a URL."""
        import fsspec  # which torch requires

        protocol = root.partition("://")[0]
        try:
            # Without caches: other processes write there.
            file_system = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            extra = "pip install 'gpt2core[s3]'" if protocol in ("s3", "s3a") else "install the package that it names"
            raise UserError(f"{VARIABLE}={root}: {error}; {extra}") from None
        except ValueError as error:
            raise UserError(
                f"{VARIABLE}={root}: {error}; allowed: a folder, or a URL such as s3://BUCKET/PATH"
            ) from None
        if (
            protocol in ("http", "https") or not file_system.async_impl
        ):  # fsspec's own `create` is a question and a write, between which others write
            raise UserError(
                f"{VARIABLE}={root}: {protocol}:// cannot lock a training, because it creates no object exclusively; "
                "allowed: a folder, or an object store such as s3://BUCKET/PATH"
            )
        return cls(file_system, root, name)

    def child(self, name: str) -> ObjectStore:
        root, own = self.location
        return ObjectStore(self._fs, root, f"{own}/{name}" if own else name, self._lease)

    def entries(self) -> dict[str, Entry]:
        with self._errors():
            found = self._fs.find(self._url, detail=True)
            start = len(self._fs._strip_protocol(self._url)) + 1
            return {
                path[start:]: Entry(info["size"], (info.get("LastModified") or self._fs.modified(path)).timestamp())
                for path, info in found.items()
            }

    def put(self, path: Path, name: str) -> None:
        with self._errors():
            self._fs.put_file(str(path), f"{self._url}/{name}")

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        temporary = self.temporary
        try:
            with self._errors():
                self._fs.get_file(f"{self._url}/{name}", str(temporary))
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        with self._errors():
            return bytes(self._fs.cat_file(f"{self._url}/{name}"))

    def write(self, name: str, text: str) -> None:
        with self._errors():
            self._fs.pipe_file(f"{self._url}/{name}", text.encode())

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._errors():
            self._fs.rm_file(f"{self._url}/{name}")

    def delete(self) -> None:
        """Remove all objects of the folder, and its lease."""
        if self._lease:
            self._lease.stop()
            self._lease = None
        for url in (self._url, f"{self._url}.lease"):
            with contextlib.suppress(FileNotFoundError), self._errors():
                self._fs.rm(url, recursive=True)
        self._lock.delete()

    def guard(self) -> AbstractContextManager[object]:
        """Exclude no one: a folder is removed by the process that has its lease."""
        return contextlib.nullcontext()

    def acquire(self, *, wait: bool) -> bool:
        """Acquire the lock of this machine, and then the lease."""
        if not self._lock.acquire(wait=wait):
            return False
        root, name = self.location
        lease = Lease(ObjectStore(self._fs, root, f"{name}.lease"), _owner(), str(self))
        try:
            if lease.acquire(wait=wait):
                self._lease = lease
        finally:
            if not self._lease:
                self._lock.delete()
                self._lock.release()
        return self._lease is not None

    def release(self) -> None:
        """Release the lease and the lock, and leave nothing in `scratch`."""
        try:
            if self._lease:
                self._lease.release()
        finally:
            self._lock.delete()
            self._lock.release()

    def check(self) -> None:
        """Renew the lease. Raises UserError if another process has taken it over."""
        if self._lease:
            self._lease.renew()

    @property
    def is_lost(self) -> bool:
        return self._lease is not None and self._lease.is_lost

    def create(self, name: str, content: bytes) -> None:
        """Create an object. Raises FileExistsError if there is one of this name."""
        with self._errors():
            self._fs.pipe_file(f"{self._url}/{name}", content, mode="create")

    def modified_s(self, name: str) -> float:
        """Return when an object was written, by the store's clock. Raises FileNotFoundError if it is missing."""
        with self._errors():
            return float(self._fs.modified(f"{self._url}/{name}").timestamp())

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # each library has its own
            message = " ".join(re.sub(r"\?[^\s\"']*", "", redacted(error)).split())[:MAX_MESSAGE]  # without queries
            for variable in SECRETS:
                message = without_secret(message, os.environ.get(variable, ""))
            raise StoreError(f"{self}: {message}") from None


def _owner() -> str:
    """Return the name of this project on this machine, for leases."""
    path = config.checkpoints_dir() / "owner"
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex)
    return f"{platform.node()}/{files.read_text(path)}"


def checkpoint_root() -> Storage:
    """Return the folder of all training checkpoints: the one that `GPT2CORE_CHECKPOINTS` names, or `.checkpoints`.

    Raises:
        UserError: the variable names a folder that does not exist, a URL with a secret, or an unknown file system.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if secret := secret_in_url(value):
        raise UserError(
            f"{VARIABLE} contains {secret}; set credentials in variables of their own (AWS_ACCESS_KEY_ID, …)"
        )
    if not value:
        return LocalFolder(config.checkpoints_dir())
    if re.match(r"[a-z0-9]{2,}:", value) and not re.match(r"[a-z0-9]+://[^/]", value):
        raise UserError(f"{VARIABLE}={value}: names no bucket; allowed: a folder, or a URL such as s3://BUCKET/PATH")
    return open_storage(value if "://" in value else str(config.project_root() / Path(value).expanduser()))


def open_storage(root: str, name: str = "") -> Storage:
    """Return the folder `name` below a root, which is a path or a URL.

    Raises:
        UserError: the path is not a folder, or the URL cannot be opened.
    """
    if "://" in root:
        return ObjectStore.open(root.rstrip("/"), name)
    if not Path(root).is_dir():
        raise UserError(f"{VARIABLE}: {root} is not a folder; create it (mkdir -p), or mount its disk")
    return LocalFolder(Path(root).resolve(), name, is_shared=True)
