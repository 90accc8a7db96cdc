"""Download of one file of an asset, complete and verified, or one sentence that says why it failed.

The mirror in `GPT2CORE_MIRROR` comes first, then the asset's URLs. An unfinished download is a `.part` file in
`$DVC_ROOT/.checkpoints/downloads`, where neither a killed run nor DVC deletes it, and the next try continues it.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import logging
import math
import os
import re
import shutil
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urljoin

import requests
import tenacity
import urllib3
from filelock import Timeout
from tqdm import tqdm

from gpt2core import config, files
from gpt2core.deadline import within
from gpt2core.errors import UserError, first_line
from gpt2core.log import logger
from gpt2core.redact import redacted
from gpt2core.sources.registry import Asset, File

CHUNK_BYTES = 16 << 10
PROGRESS_BYTES = 8 << 20  # a try that receives at least this much resets the count of tries
TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it logs a traceback for each damaged header, before an error

MAX_DOWNLOAD_BYTES = 64 << 30  # of a file whose size the registry does not know; OpenAI's largest has 6.2 GB
MAX_ARCHIVE_FACTOR = 20  # a zip may have this many times the bytes of the one member that is taken out of it


@dataclass(frozen=True)
class Retry:
    """How often one URL is tried, and for how long; the wait doubles after each try, up to `longest_wait_s`.

    A try ends when it receives fewer than `min_bytes_per_s` on average over `read_timeout_s`. All tries together end
    after `deadline_s`.
    """

    tries: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 60.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    min_bytes_per_s: float = 1000.0
    deadline_s: float = 24 * 3600.0


class _Failed(Exception):
    """A place that cannot give the file; another one may."""


class _Transient(_Failed):
    """A failure that another try at the same place may fix, `retry_after_s` from now if the server said so."""

    def __init__(self, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


def downloads_dir() -> Path:
    """Return the folder of unfinished downloads: outside every DVC output, and one for all experiments."""
    return config.checkpoints_dir() / "downloads"


def fetch_all(asset: Asset, out_dir: Path, retry: Retry | None = None) -> None:
    """Download all files of an asset into `out_dir`, which appears when all are complete.

    Until then they are in `downloads_dir`: a killed run keeps the finished ones.
    """
    alone = _alone(downloads_dir() / f"{asset.name}.all")
    with alone, disk_errors(out_dir), downloaded(asset, retry) as folder, files.atomic_dir(out_dir) as out:
        link_all(asset, folder, out)


def link_all(asset: Asset, folder: Path, out_dir: Path) -> None:
    """Give all files of an asset a second name in `out_dir`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for file in asset.files:
        files.link_or_copy(folder / file.name, out_dir / file.name)


@contextlib.contextmanager
def downloaded(asset: Asset, retry: Retry | None = None) -> Iterator[Path]:
    """Yield a folder of all the asset's files, which outlives a block that fails, so nothing is fetched twice.

    Assets by URL share the folder of their host, so another block may have removed it.
    """
    folder = downloads_dir() / asset.name
    for file in asset.files:
        fetch(asset, file, folder / file.name, retry)
    yield folder
    if folder.exists():
        shutil.rmtree(folder)


def fetch(asset: Asset, file: File, out_path: Path, retry: Retry | None = None) -> None:
    """Download one file to `out_path`, from the first place that has it. A file with the right hash is kept.

    Raises:
        UserError: one sentence that names every place and its failure: wrong hash or size, no connection, a status such
            as 404, a connection that keeps breaking, an invalid certificate; or the disk is full.
    """
    if file.sha256 and out_path.is_file() and files.sha256(out_path) == file.sha256:
        return
    failures: list[str] = []
    with disk_errors(out_path):
        for place in _places(asset, file):
            shown = redacted(place)
            if failures:
                logger.info(f"{asset.name}/{file.name} is not available from {failures[-1]}; asking {shown}")
            try:
                if isinstance(place, Path):
                    _copy(place, file, out_path)
                else:
                    _download(place, asset, file, out_path, retry or Retry())
                if not file.sha256 and asset.kind == "corpus":
                    logger.info(f"{shown}: no hash is pinned; append #sha256={files.sha256(out_path)}")
                return
            except _Failed as error:
                failures.append(f"{shown}: {error}")
    raise UserError(f"{asset.name}/{file.name} could not be fetched ({'; '.join(failures)}); {_advice(asset, file)}")


def _advice(asset: Asset, file: File) -> str:
    if asset.origin == "packaged":
        return "install gpt2core again"
    advice = (
        "check the network and run again (what is already here is kept), "
        f"or set GPT2CORE_MIRROR to a folder or URL that holds {asset.name}/{file.name}"
    )
    if asset.kind in ("corpus", "classification", "instructions"):
        advice += ", or put a file of your own into data/own/ and name it own/FILE in params.yaml"
    return advice


def _places(asset: Asset, file: File) -> list[Path | str]:
    """Return the paths and URLs to try, in order."""
    if asset.origin == "packaged":
        return [Path(__file__).parents[1] / "assets" / asset.name / file.name]
    mirror = os.environ.get("GPT2CORE_MIRROR")
    if not mirror:
        return list(file.urls)
    if mirror.startswith(("http://", "https://")):
        return [_mirror_url(mirror, asset, file), *file.urls]
    try:
        folder = config.project_root() / Path(mirror).expanduser()
    except RuntimeError as error:  # a user that this machine does not have
        raise UserError(f"GPT2CORE_MIRROR={redacted(mirror)}: is no folder ({error})") from None
    if not folder.is_dir():
        raise UserError(
            f"GPT2CORE_MIRROR={redacted(mirror)}: there is no such folder; set it to a folder or an http(s) URL"
        )
    return [folder / asset.name / file.name, *file.urls]


def _mirror_url(mirror: str, asset: Asset, file: File) -> str:
    return f"{mirror.rstrip('/')}/{quote(asset.name)}/{quote(file.name)}"


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk (or quota) into one UserError about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in files.DISK_FULL:
            raise
        raise UserError(
            f"the disk is full: {path} could not be written; free some space and run again "
            f"(unfinished downloads are kept in {downloads_dir()})"
        ) from None


def _copy(source: Path, file: File, out_path: Path) -> None:
    if not source.is_file():
        raise _Failed("no such file" if not source.exists() else "not a regular file")
    with files.atomic_path(out_path) as temporary:
        shutil.copyfile(source, temporary)
        _verify(temporary, file)


def _verify(path: Path, file: File) -> None:
    """Compare size and hash with the registry's. Raises _Failed."""
    size_bytes, expected = path.stat().st_size, file.size_bytes
    if file.sha256 and (sha256 := files.sha256(path)) != file.sha256:
        sizes = f" ({size_bytes:,} bytes, expected {expected:,})" if expected is not None else ""
        raise _Failed(f"wrong content, SHA-256 is {sha256} and not the expected {file.sha256}{sizes}")
    if expected is not None and size_bytes != expected:
        raise _Failed(f"wrong size, {size_bytes:,} bytes and not the expected {expected:,}")
    if not size_bytes:
        raise _Failed("the file is empty")


def _download(url: str, asset: Asset, file: File, out_path: Path, retry: Retry) -> None:
    """Download, verify, and move one file. A wrong file assembled from several responses gets one fresh start."""
    is_mirror = url not in file.urls
    if not is_mirror and not url.startswith("https://"):
        raise _Failed("not an https:// URL")
    path = downloads_dir() / f"{asset.name}-{file.name}.part"
    with _alone(path):
        is_zip = bool(file.archive_member) and not is_mirror
        part = _Part(path, url, pinned=file.sha256 is not None, max_bytes=_max_bytes(file, is_zip))
        whole_bytes = file.size_bytes if file.sha256 and not is_zip else None  # a killed run may have left it whole
        for may_start_over in (True, False):
            if not part.size_bytes or part.size_bytes != whole_bytes:
                _complete(part, url, retry, title=f"{asset.name}/{file.name}")  # when this fails, the part stays
            try:
                with files.atomic_path(out_path) as temporary:
                    if is_zip:
                        _extract(part.path, file, temporary)
                        _verify(temporary, file)
                    else:
                        _verify(part.path, file)
                        files.link_or_copy(part.path, temporary)
            except _Failed:
                was_pieced = part.is_pieced
                part.remove()
                if not (was_pieced and may_start_over):
                    raise
            else:
                part.remove()
                return


def _max_bytes(file: File, is_zip: bool) -> int:
    """Return how many bytes a server may send for a file."""
    if file.size_bytes is None:
        return MAX_DOWNLOAD_BYTES
    return file.size_bytes * MAX_ARCHIVE_FACTOR if is_zip else file.size_bytes


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Hold the part's lock, because two runs that fetch one file would write into each other's part."""
    lock = files.lock(part.with_suffix(".lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.info(f"waiting for another process that is fetching {part.stem}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _extract(archive: Path, file: File, out_path: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as zipped:
            size_bytes = zipped.getinfo(file.archive_member or "").file_size
            if file.size_bytes is not None and size_bytes != file.size_bytes:  # before a bomb of a zip unfolds
                raise _Failed(f"wrong size in the zip, {size_bytes:,} bytes and not the expected {file.size_bytes:,}")
            with zipped.open(file.archive_member or "") as source, out_path.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise _Failed("not a sound zip") from None
    except KeyError:
        raise _Failed(f"a zip without {file.archive_member}") from None


class _Part:
    """An unfinished download with the validator (ETag or Last-Modified) of its version.

    Only its owner can read it and its note, because a mirror may be private.
    """

    def __init__(self, path: Path, url: str, pinned: bool, max_bytes: int):
        self.path, self.url, self.pinned, self.max_bytes = path, redacted(url), pinned, max_bytes
        self.note = path.with_suffix(".part.json")
        self.validator: str | None = None
        self.deadline_s = math.inf  # on the clock time.monotonic
        if self.size_bytes:
            self._read_note()
        self.is_pieced = self.size_bytes > 0

    def _read_note(self) -> None:
        """Continue what an earlier run left, if it came from the same URL and the rest will fit."""
        try:
            note = files.read_json(self.note)
            self.validator = note["validator"]
            if note["url"] == self.url and self.can_resume and self.size_bytes <= self.max_bytes:
                return
        except (UserError, KeyError, TypeError):
            pass
        self.remove()

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def can_resume(self) -> bool:
        """Whether the rest fits: without a validator it may be another version's, which only a hash would detect."""
        return self.pinned or self.validator is not None

    def start(self, validator: str | None) -> None:
        """Start again with a version of the file."""
        self.remove()
        self.validator = validator
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.path, self.note):
            path.touch(mode=0o600)
        self.note.write_text(json.dumps({"url": self.url, "validator": validator}), encoding="utf-8")

    def check(self, size_bytes: int) -> None:
        """Raise _Failed if a server has more bytes than the file can have, or all the time is used."""
        if time.monotonic() > self.deadline_s:
            raise _Failed(f"not complete in time; {self.size_bytes:,} bytes are here")
        if size_bytes > self.max_bytes:
            self.remove()
            raise _Failed(f"the server has more than the {self.max_bytes:,} bytes that are allowed for this file")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.validator, self.is_pieced = None, False


def _complete(part: _Part, url: str, retry: Retry, title: str) -> None:
    """Request until the part is complete. Raises _Transient after the last try, _Failed when trying is no use."""
    best_bytes, first_try = part.size_bytes, 1
    part.deadline_s = time.monotonic() + retry.deadline_s

    def stop(state: tenacity.RetryCallState) -> bool:
        nonlocal best_bytes, first_try
        if part.size_bytes >= best_bytes + PROGRESS_BYTES:
            best_bytes, first_try = part.size_bytes, state.attempt_number
        return state.attempt_number - first_try + 1 >= retry.tries

    def wait_s(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        server_s = getattr(error, "retry_after_s", None)
        doubled_s = retry.first_wait_s * 2 ** min(state.attempt_number - first_try, 30)
        left_s = max(0.0, part.deadline_s - time.monotonic())
        return min(retry.longest_wait_s, doubled_s if server_s is None else server_s, left_s)

    def give_up(state: tenacity.RetryCallState) -> None:
        raise _Transient(f"{state.outcome.exception()}, {state.attempt_number} tries")  # type: ignore[union-attr]

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_Transient), stop=stop, wait=wait_s, retry_error_callback=give_up
    )
    with _Session() as session:
        retrying(_ask, session, part, url, retry, title)


class _Session(requests.Session):
    """A session that verifies certificates, never follows a redirect from https to http, and reads no body of one."""

    def get_redirect_target(self, response: requests.Response) -> str | None:
        target = super().get_redirect_target(response)
        if target and response.url.startswith("https:") and urljoin(response.url, target).startswith("http:"):
            raise _Failed("redirects from https to http, which is refused")
        if target and response.raw:  # requests would read the whole body, and it may have no end
            response.raw.close()
            response.raw = None
        return target


def _ask(session: requests.Session, part: _Part, url: str, retry: Retry, title: str) -> None:
    """Send one request for the rest of the part."""
    headers = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file, not of its compressed form
    have_bytes = part.size_bytes
    if have_bytes and not part.can_resume:
        part.remove()
        have_bytes = 0
    if have_bytes:
        headers["Range"] = f"bytes={have_bytes}-"
        if part.validator:
            headers["If-Range"] = part.validator
    has_begun = False  # whether the status was accepted
    timeouts_s = (retry.connect_timeout_s, retry.read_timeout_s)
    try:
        # The session's limits are per address of the host and per byte; this one is for the whole head of the answer.
        with within(
            2 * sum(timeouts_s), session.get, url, headers=headers, stream=True, timeout=timeouts_s
        ) as response:
            total_bytes = _begin(response, part, have_bytes)
            has_begun = True
            if total_bytes != part.size_bytes:
                _receive(response, part, total_bytes, title, retry)
    except TimeoutError:
        raise _Transient("the server does not answer in time") from None
    except (ValueError, OverflowError) as error:  # an address that cannot be parsed, the server's in a redirect too
        if isinstance(error, requests.exceptions.RequestException):
            raise _failure(error, part.size_bytes if has_begun else None) from None
        raise _Failed(f"no usable address or answer ({first_line(error)})") from None
    except urllib3.exceptions.HTTPError as error:
        raise _failure(requests.exceptions.ConnectionError(error), part.size_bytes) from None
    except requests.exceptions.RequestException as error:
        raise _failure(error, part.size_bytes if has_begun else None) from None


def _failure(error: requests.exceptions.RequestException, received_bytes: int | None) -> _Failed:
    """Return what an error of requests means for the next try; `received_bytes` is None before the body starts."""
    reason = _reason(error)
    match error:
        case requests.exceptions.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return _Failed(f"the server's certificate is not valid ({reason})")
        case requests.exceptions.SSLError():
            return _Transient(f"no secure connection ({reason})")
        case (
            requests.exceptions.InvalidURL()
            | requests.exceptions.InvalidSchema()
            | requests.exceptions.TooManyRedirects()
        ):
            return _Failed(reason)
        case requests.exceptions.ConnectTimeout():
            return _Transient("no connection (timed out)")
        case _ if received_bytes is not None:
            return _Transient(f"the connection was cut after {received_bytes:,} bytes")
        case requests.exceptions.ReadTimeout():
            return _Transient("the server does not answer in time")
    return _Transient(f"no connection ({reason})")


def _reason(error: BaseException) -> str:
    """Return the first cause, from inside the exceptions that requests and urllib3 wrap around it."""
    while inner := next((e for e in (getattr(error, "reason", 0), *error.args) if isinstance(e, BaseException)), None):
        error = inner
    return first_line(Exception(getattr(error, "strerror", None) or str(error).rsplit(": ", 1)[-1]))


def _begin(response: requests.Response, part: _Part, have_bytes: int) -> int | None:
    """Check status and headers and prepare the part for the body; return the file's length in bytes, if known."""
    status, headers = response.status_code, response.headers
    if status in (200, 206) and (encoding := headers.get("Content-Encoding", "identity")).lower() != "identity":
        raise _Failed(f"the server compresses the file (Content-Encoding: {encoding}), which is refused")
    if status == 200:
        part.start(_validator(headers))
        length = headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,18}", length, re.ASCII):
            return None
        part.check(int(length))
        return int(length)
    span = re.fullmatch(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", headers.get("Content-Range", "").strip())
    if status == 206 and have_bytes:
        same = _validator(headers) in (part.validator, None)
        if span and span[1] and int(span[1]) == have_bytes and same:
            part.is_pieced = True
            return int(span[3]) if span[3] != "*" else int(span[2]) + 1
        part.remove()
        raise _Transient("the server answered with another range than the one asked for")
    if status == 416 and have_bytes:
        if span and span[3] == str(have_bytes):
            return have_bytes
        part.remove()
        raise _Transient("the server has less than is already here")
    reason = f"HTTP status {status} {response.reason or ''}".rstrip()
    if status in TRANSIENT_STATUS:
        raise _Transient(reason, _retry_after_s(headers.get("Retry-After")))
    raise _Failed(f"{reason}, there is no such file" if status in (404, 410) else reason)


def _validator(headers: requests.structures.CaseInsensitiveDict[str]) -> str | None:
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _retry_after_s(value: str | None) -> float | None:
    """Return the header's seconds, or the time until its date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


@contextlib.contextmanager
def _no_endless_read(response: requests.Response, limit_s: float) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each read. The connection of a read that takes longer than `limit_s` is shut down.

    A server can keep a read busy without a byte of the file: the trailers after its last chunk need not end.
    """
    has_read, is_over = threading.Event(), threading.Event()

    def watch() -> None:
        while has_read.wait(limit_s):
            has_read.clear()
            if is_over.is_set():
                return
        with contextlib.suppress(OSError, ValueError):  # it is closed already
            response.raw.shutdown()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield has_read.set
    finally:
        is_over.set()
        has_read.set()


def _receive(response: requests.Response, part: _Part, total_bytes: int | None, title: str, retry: Retry) -> None:
    bar = tqdm(
        desc=title, total=total_bytes, initial=part.size_bytes, unit="B", unit_scale=True, leave=False, disable=None
    )
    size_bytes = part.size_bytes
    window_start_s, window_bytes = time.monotonic(), 0
    with bar, part.path.open("ab") as file, _no_endless_read(response, 2 * retry.read_timeout_s) as has_read:
        # Not iter_content: it undoes compression, and waits until a chunk is full.
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
            has_read()
            file.write(chunk)
            bar.update(len(chunk))
            size_bytes += len(chunk)
            window_bytes += len(chunk)
            part.check(size_bytes)
            if (elapsed_s := time.monotonic() - window_start_s) >= retry.read_timeout_s:
                if window_bytes < retry.min_bytes_per_s * elapsed_s:
                    raise _Transient(f"the server is too slow: {window_bytes:,} bytes in {elapsed_s:.0f} s")
                window_start_s, window_bytes = time.monotonic(), 0
    size_bytes = part.size_bytes
    if total_bytes is not None and size_bytes < total_bytes:
        raise _Transient(f"the connection was cut after {size_bytes:,} of {total_bytes:,} bytes")
    if total_bytes is not None and size_bytes > total_bytes:
        part.remove()
        raise _Transient(f"the server sent {size_bytes:,} bytes where it had announced {total_bytes:,}")
