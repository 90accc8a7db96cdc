"""Files of documents at an address: s3://BUCKET/KEY, and hf://datasets/OWNER/NAME/PATH on the Hugging Face Hub.

They are not copied. `download-data` lists them, with size and version, in `remote.json`, on which `tokenize` depends.
`tokenize` reads them in place, through fsspec, and refuses a file that has changed since. Credentials are those of the
libraries: AWS_ACCESS_KEY_ID and its kind, ~/.aws, HF_TOKEN.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gpt2core import files
from gpt2core.errors import UserError, first_line
from gpt2core.redact import redacted, secret_in_url

ACCESS = {  # what gives access, by scheme; the scheme is also the extra of pyproject.toml
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket, "
    "AWS_ENDPOINT_URL for another server",
    "hf": "set HF_TOKEN, and accept the terms of the data set on its page if it has any",
}
SERVERS = {"s3": "AWS_ENDPOINT_URL, if it is set", "hf": "HF_ENDPOINT, if it is set"}
NAMED = {  # addresses that name a bucket or a data set
    "s3": (re.compile(r"s3://[^/]+"), "s3://BUCKET/texts/*.jsonl"),
    "hf": (re.compile(r"hf://datasets/[^/]+/[^/]+"), "hf://datasets/OWNER/NAME/data/*.parquet"),
}
CLIENTS = (
    "aiobotocore", "aiohttp", "botocore", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests",
    "s3fs",
)  # fmt: skip
LISTING = "remote.json"
BLOCK_BYTES = 8 << 20  # per request


class RemoteFile(NamedTuple):
    """A file at an address, as it was listed."""

    url: str
    size_bytes: int
    version: str  # the server's ETag or hash of the content


def is_remote(path: object) -> bool:
    """Return whether this is an address that fsspec reads, and not a path."""
    scheme, separator, _ = str(path).partition("://")
    return bool(separator) and scheme in ACCESS


def find(url: str) -> list[RemoteFile]:
    """Return the files of an address, sorted: one file, a pattern, or the files in a folder.

    A branch of the Hub is replaced by its present commit.

    Raises:
        UserError: no such file, no access, a secret in the address, or a package that is not installed.
    """
    if secret := secret_in_url(url):
        raise UserError(f"{redacted(url)!r} has {secret}, which would be in params.yaml, Git, and MLflow")
    scheme = url.partition("://")[0]
    pattern, example = NAMED[scheme]
    if not pattern.match(url):
        raise UserError(f"{url}: names no {'bucket' if scheme == 's3' else 'data set'}; write, for example, {example}")
    with readable(url):
        system, path = _system(url)
        if scheme == "hf":
            path = _at_commit(system, path)
        found = system.glob(path, detail=True)
        if [info["type"] for info in found.values()] == ["directory"]:
            found = system.find(path, maxdepth=1, detail=True)
        return [_file(scheme, name, info) for name, info in sorted(found.items()) if info["type"] == "file"]


def check(file: RemoteFile) -> None:
    """Raise UserError if a file is no longer the one that was listed."""
    with readable(file.url):
        system, path = _system(file.url)
        now = _file(file.url.partition("://")[0], path, system.info(path))
    if now[1:] != file[1:]:
        raise UserError(
            f"{file.url}: has changed since download-data listed it; list the files again: "
            "dvc repro --force --single-item download-data"
        )


def open_file(url: str) -> BinaryIO:
    """Open a file, which is read in blocks; use it in `readable`."""
    system, path = _system(url)
    return io.BufferedReader(system.open(path, "rb", block_size=BLOCK_BYTES))


def write_listing(found: list[RemoteFile], folder: Path) -> None:
    """Write the list of files that belong to a folder of a corpus."""
    files.write_json(folder / LISTING, [file._asdict() for file in found])


def listings(folder: Path) -> list[Path]:
    """Return all lists of files in a folder and its subfolders, sorted by path."""
    return sorted(folder.rglob(LISTING))


def listed(folder: Path) -> list[RemoteFile]:
    """Return the files of all lists in a folder and its subfolders."""
    return [RemoteFile(**row) for path in listings(folder) for row in files.read_json(path)]


@contextlib.contextmanager
def readable(url: str) -> Iterator[None]:
    """Raise UserError, with the address and what to do, for errors of the network, access, and missing packages."""
    scheme = url.partition("://")[0]
    try:
        yield
    except ImportError as error:
        raise UserError(f"{url}: {error.name or first_line(error)}: pip install 'gpt2core[{scheme}]'") from None
    except FileNotFoundError:
        raise UserError(f"{url}: no such bucket, data set, or file; check the address, and its access") from None
    except Exception as error:  # each client has exceptions of its own
        client = type(error).__module__.partition(".")[0]
        if client not in CLIENTS and not isinstance(error, OSError):
            raise
        name = type(error).__name__
        is_of_network = "Connect" in name or "Timeout" in name
        remedy = f"is the server reachable? Check {SERVERS[scheme]}" if is_of_network else ACCESS[scheme]
        raise UserError(f"{url}: cannot be read ({name}: {first_line(error)}); {remedy}") from None


def _system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path there."""
    import fsspec

    return fsspec.core.url_to_fs(url)


def _at_commit(system: Any, path: str) -> str:
    """Return a path of the Hub with the commit that its branch is at."""
    place = system.resolve_path(path)
    commit = system._api.dataset_info(place.repo_id, revision=place.revision).sha
    return f"datasets/{place.repo_id}@{commit}/{place.path_in_repo}".rstrip("/")


def _file(scheme: str, path: str, info: dict[str, Any]) -> RemoteFile:
    version = info.get("ETag") or info.get("blob_id") or ""
    return RemoteFile(f"{scheme}://{path}", int(info["size"]), version.strip('"'))
