"""Files on disk: atomic writes, JSON, hashes, locks. Nothing is ever half-written."""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import fnmatch
import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from gpt2core.errors import UserError

MAX_TEXT_BYTES = 256 << 20  # of a text that is read into memory as a whole
BLOCK_BYTES = 1 << 20
SMALL_BYTES = 1 << 16  # the size of files in /proc is 0
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a file to write; on success it replaces `path`, on failure it is removed.

    The rename is atomic because both are in one file system: a reader sees the old file or the whole new one.
    """
    path = Path(path)
    with _scratch(path) as folder:
        temporary = folder / path.name
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # some libraries make files private; these are meant to be read
        os.replace(temporary, path)


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a fresh directory near `path`; on success it replaces `path`, on failure it is removed.

    A reader, or a run after a kill, finds the old directory, none, or the whole new one.
    """
    path = Path(path)
    with _scratch(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, folder / f"{path.name}.old")  # in one step; to delete it takes many
        os.replace(temporary, path)


def remove_dir(path: str | os.PathLike[str]) -> None:
    """Remove a directory; a run after a kill finds it whole, or not at all."""
    path = Path(path)
    with _scratch(path) as folder, contextlib.suppress(FileNotFoundError):
        os.replace(path, folder / path.name)


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Yield a folder next to `path` for one writer, who holds a lock in it.

    A killed writer leaves its folder and loses the lock: the next writer of `path` removes folders without a holder.
    The lock is a separate file, since a library may replace the temporary file that it writes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{path.name}.lock"
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # somebody holds it (filelock's Timeout), or has just removed it
            if (left / name).exists():
                with FileLock(left / name, timeout=0):
                    _clear(left, name)
            else:
                left.rmdir()  # its writer came no further; one with anything else in it is not ours and stays
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        held = FileLock(folder / name, timeout=0)
        try:
            held.acquire()
            break
        except (Timeout, FileNotFoundError, FileExistsError):
            continue  # another writer took the new folder for one that was left
    try:
        with _names_what_was_written(path):
            yield folder
    finally:
        _clear(folder, name)
        held.release()


def _clear(folder: Path, lock_name: str) -> None:
    """Remove a writer's folder, the lock last: it marks what a kill leaves of the folder for the next writer."""
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.is_symlink():
            shutil.rmtree(inner, ignore_errors=True)
        elif inner.name != lock_name:
            inner.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _names_what_was_written(path: Path) -> Iterator[None]:
    """Give `path` to the OSError of a full disk: a failed write has no name, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            error.filename = os.fspath(path)
        raise
    except Exception as error:  # libraries written in Rust, as safetensors, tell the number in the text alone
        match = re.search(r"\(os error (\d+)\)", str(error))
        if match and int(match[1]) in DISK_FULL:
            raise OSError(int(match[1]), os.strerror(int(match[1])), os.fspath(path)) from error
        raise


def check_out_dir(src: Path, out: Path, kind: str, names: Sequence[str]) -> None:
    """Check that writing `out` would not delete its source or an unrelated folder.

    Args:
        src: directory that is read.
        out: directory that will be written.
        kind: what `out` will be, for messages; an existing directory of this kind may be replaced.
        names: patterns of the files that a directory of this kind has.

    Raises:
        UserError: `out` contains `src`, or exists and has anything else in it.
    """
    if out.name in ("", ".."):
        raise UserError(f"{out}: name a folder to write, such as models/own/NAME")
    if out.resolve() == src.resolve() or out.resolve() in src.resolve().parents:
        raise UserError(f"{out}: holds the source {src}, which writing would delete; choose another directory")
    if not (out.exists() or out.is_symlink()):
        return
    if not out.is_dir():
        raise UserError(f"{out}: exists and is no {kind}; choose another name or remove it")
    for path in out.iterdir():
        if path.is_dir() or not any(fnmatch.fnmatchcase(path.name, name) for name in names):
            raise UserError(f"{out}: exists, and {path.name!r} in it is not part of a {kind}; choose another name")


def link_or_copy(path: str | os.PathLike[str], out_path: str | os.PathLike[str]) -> None:
    """Give a file that is never written again a second name, which takes no space; copy it where that fails."""
    try:
        os.link(path, out_path)
    except OSError:
        shutil.copyfile(path, out_path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 with its line ends as they are, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        UserError: it is missing, cannot be read, or is a pipe, device, or folder.
    """
    try:
        # Without O_NONBLOCK, a pipe that nobody writes to would wait forever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, error) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder; a file is needed here")
    raise UserError(f"{path}: is not a regular file; a file that can be read again is needed here")


def _unreadable(path: str | os.PathLike[str], error: Exception) -> UserError:
    return UserError(f"{path!s}: cannot be read ({getattr(error, 'strerror', None) or error})")


def read_bytes(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Read a regular file. Raises UserError as `open_regular`, or if the file is larger than `max_bytes`."""
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        limit = min(max(size_bytes, SMALL_BYTES), max_bytes)  # Python reserves as much memory as it may read
        try:
            content = file.read(limit + 1) if size_bytes <= max_bytes else b""
        except OSError as error:
            raise _unreadable(path, error) from None
    if size_bytes > max_bytes or len(content) > limit:
        raise UserError(f"{path}: is larger than {max_bytes:,} bytes, the limit for this kind of file")
    return content


def read_text(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a UTF-8 text with its line ends as they are, without a byte order mark.

    Raises:
        UserError: names the file, and the byte: missing, no regular file, too large, not UTF-8, or with a NUL.
    """
    return decode_text(read_bytes(path, max_bytes), path)


def read_document(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text as `download-data` reads a corpus: every line end is LF. Raises UserError as `read_text`."""
    return lf_line_ends(read_text(path))


def lf_line_ends(text: str) -> str:
    """Return a text with LF for each CRLF and CR."""
    return re.sub(r"\r\n?", "\n", text)


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number of each line that is not blank, from 1, and the line without its end: LF, CRLF, or CR alone.

    A CR ends a line only in a text without any LF. `str.splitlines` would also cut texts at U+0085 or U+2028.
    """
    lines = text.split("\n" if "\n" in text else "\r")
    return ((row, line.removesuffix("\r")) for row, line in enumerate(lines, start=1) if line.strip())


def decoded(file: BinaryIO, name: object) -> Iterator[str]:
    """Yield the text of a UTF-8 file of any size in blocks, with LF line ends and without a byte order mark.

    Raises:
        UserError: names `name` and the byte: not UTF-8, or a NUL.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = io.IncrementalNewlineDecoder(None, translate=True)
    n_bytes, is_first = 0, True
    while True:
        block = file.read(BLOCK_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_utf8(name, n_bytes - pending + error.start, error.reason, is_first and block[:2]) from None
        if "\0" in text:
            place = n_bytes - pending + len(text[: text.index("\0")].encode())
            raise UserError(f"{name}: byte {place} is a NUL, which no text has; is this a text in UTF-8?")
        n_bytes += len(block)
        yield lines.decode(text.removeprefix("\ufeff") if is_first else text, final=not block)
        is_first = False
        if not block:
            return


def not_utf8(name: object, place: int, reason: str, start: bytes | bool) -> UserError:
    """Return the error of a file that is not UTF-8 at byte `place`; `start` are its first two bytes, if known."""
    encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "latin1"
    return UserError(
        f"{name}: byte {place} is not UTF-8 ({reason}); "
        f"save the file as UTF-8 (for example: iconv -f {encoding} -t utf-8)"
    )


def decode_text(content: bytes, name: object) -> str:
    """Return the text of bytes, without a byte order mark. Raises UserError that names `name` and the byte."""
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(name, error.start, error.reason, content[:2]) from None
    if "\0" in text:
        raise UserError(f"{name}: byte {content.index(0)} is a NUL, which no text has; is this a text in UTF-8?")
    return text


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented UTF-8 JSON with a final newline, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file; UserError that names line and column if it is not JSON."""
    return parse_json(read_text(path, max_bytes), path)


def parse_json(text: str, name: object) -> Any:
    """Return the value of a JSON text. Raises UserError that names `name`, line and column."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError:  # Python refuses more digits, because it needs quadratic time for them
        raise UserError(f"{name}: not usable JSON: a number has thousands of digits") from None
    except RecursionError:
        raise UserError(f"{name}: not usable JSON: nested too deeply") from None


def read_records(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file, or JSON lines: one value per line, whatever the file's name ends with.

    Returns:
        The file's value, or the list of the values of its lines.

    Raises:
        UserError: names the file and the line that is not JSON.
    """
    text = read_text(path)
    lines = list(numbered_lines(text))
    if len(lines) < 2 or not lines[0][1].rstrip().endswith("}") or not lines[1][1].lstrip().startswith("{"):
        return parse_json(text, path)
    return [parse_json(line, f"{path}, row {row:,}") for row, line in lines]


def read_csv(
    path: str | os.PathLike[str], text: str | None = None
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Read a CSV with a header line; cells may have any length.

    Args:
        path: the file, or the name for messages if `text` is given.
        text: the content, where it does not come from a file.

    Returns:
        The names of the columns without surrounding white space, and for each other row the line on which it ends and
        its cells, as many as columns.

    Raises:
        UserError: names the file and the row: no CSV, or too many or too few cells.
    """
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path) if text is None else text, newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            yield from ((reader.line_num, cells) for cells in reader if cells)
        except csv.Error as error:
            problem = f"not CSV: {error}; is a quotation mark left open?"
            raise UserError(f"{path}, row {reader.line_num:,}: {problem}") from None

    def checked() -> Iterator[tuple[int, list[str]]]:
        for number, cells in records:
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, row {number:,}: {len(cells)} column(s), the header has {len(header)}; "
                    "put a text with a comma between quotation marks"
                )
            yield number, cells

    records = rows()
    header = [name.strip() for name in next(records, (1, []))[1]]
    return header, checked()


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(path: str | os.PathLike[str], timeout_s: float = -1) -> FileLock:
    """Return a lock between processes, as a context manager that waits until no other process holds it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=timeout_s)


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as CSV, floats with nine significant digits, None as an empty cell; atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row[column] for column in columns)
        writer.writerow([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in cells])
    write_text(path, text.getvalue())
