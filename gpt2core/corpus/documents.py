"""Files of documents, cut into parts that can be read alone: text, JSONL, and Parquet, plain or compressed.

A part is about 8 MB of one file: a range of bytes of a text or JSONL file, some row groups of a Parquet file, or a
whole file if it is small, compressed, or remote. It is a path and offsets, so that no text is sent to a process. A text
is cut between documents, and inside one only if it is longer than a part, at a place that its own text decides.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import regex

from gpt2core.corpus import remote
from gpt2core.corpus.remote import RemoteFile
from gpt2core.errors import UserError, listed

END_OF_TEXT = "<|endoftext|>"  # not imported from the tokenizer, on which no download should depend

PART_BYTES = 8 << 20
BLOCK_CHARS = 1 << 20  # a longer document comes in several pieces of about this length
MAX_LINE_BYTES = 256 << 20  # of a JSONL file; a compressed one may be small and unfold to any size
MAX_UNCUT_CHARS = 64 << 20  # in memory as one piece
BATCH_ROWS = 128  # documents of a Parquet file in memory at a time

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".zst")
ALLOWED = ".txt, .jsonl (both also with .gz or .zst appended) or .parquet"
TEXT_KEY = "text"  # the key of a JSONL object, and the column of a Parquet file, that holds the document

# Between a word and the single space or newline before the next one no tokenizer of GPT-2's pattern has a token across.
SAFE_CUT = regex.compile(r"(?<=\S)(?<!<\|endoftext\|>)(?=[ \n]\S)")
SEPARATOR = regex.compile(r"\n?" + regex.escape(END_OF_TEXT))


class Piece(NamedTuple):
    """Some text of one document, and whether the document ends with it."""

    text: str
    ends_document: bool


class Part(NamedTuple):
    """A range of a file: of bytes, or of a Parquet file's row groups. Its values are those of JSON."""

    path: str
    start: int
    end: int
    continues: bool = False  # starts inside a document
    is_open: bool = False  # ends inside a document


class Damaged(Exception):
    """An error in a row, counted from 1 within its part, or in the file as a whole."""

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


def format_of(path: str | Path) -> tuple[str, str] | None:
    """Return format and compression by the name's end, such as (".jsonl", ".zst"); None if it is no such file."""
    name = Path(path).name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    form = Path(name.removesuffix(compression)).suffix
    if form not in FORMATS or (form == ".parquet" and compression):
        return None
    return form, compression


def find_documents(folder: Path) -> list[Path]:
    """Return all files of documents in a folder and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if is_documents(path))


def is_documents(path: Path) -> bool:
    """Return whether this is a file of documents, and not the companion that a Mac writes next to one (`._a.txt`)."""
    return path.is_file() and format_of(path) is not None and not path.name.startswith("._")


def plan(path: Path) -> list[Part]:
    """Cut a file into parts, which depend on the file alone. Raises UserError if it is not what its name says."""
    form, compression = format_of(path) or (None, None)
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        return []
    if compression:
        return [Part(str(path), 0, size_bytes)]
    with _naming(Part(str(path), 0, 0)):
        if form == ".parquet":
            return _plan_parquet(str(path))
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _plan_text(path, data) if form == ".txt" else _plan_lines(path, data)


def plan_remote(file: RemoteFile) -> list[Part]:
    """Cut a remote file into parts. Raises UserError if it has changed, or cannot be read."""
    remote.check(file)
    whole = Part(file.url, 0, file.size_bytes)
    if format_of(file.url) != (".parquet", ""):
        return [whole] if file.size_bytes else []
    with _naming(whole):
        return _plan_parquet(file.url)


def text_bytes(part: Part) -> int:
    """Return about how many bytes of text a part has; PART_BYTES where only reading it would tell."""
    return part.end - part.start if format_of(part.path) in ((".txt", ""), (".jsonl", "")) else PART_BYTES


def read(part: Part) -> Iterator[Piece]:
    """Yield the documents of a part, in pieces, without those that are only white space.

    Raises:
        UserError: not UTF-8, not JSON, no text where one is due, damaged compression; with file and row.
    """
    form, compression = format_of(part.path) or (None, None)
    with _naming(part):
        if form == ".parquet":
            yield from _read_parquet(part)
            return
        with _open(part, compression or "") as stream:
            yield from _read_text(stream, part) if form == ".txt" else _read_lines(stream)


@contextlib.contextmanager
def _naming(part: Part) -> Iterator[None]:
    """Add the file, and the row, to each error."""
    try:
        with remote.readable(part.path) if remote.is_remote(part.path) else contextlib.nullcontext():
            yield
    except UnicodeDecodeError as error:
        if part.path.lower().endswith(".parquet"):
            raise UserError(f"{part.path}: a text in it is not UTF-8 ({error.reason}); write the file again") from None
        raise UserError(f"{part.path}: {_not_utf8(part)}; convert it: iconv -f latin1 -t utf-8") from None
    except Damaged as error:
        row = "" if error.row is None else f", row {error.row + _rows_before(part):,}"
        raise UserError(f"{part.path}{row}: {error}") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{part.path}: damaged or cut short ({error}); fetch the file again") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{part.path}: damaged or cut short ({error}); fetch the file again") from None


def _not_utf8(part: Part) -> str:
    """Return where and why a part is not UTF-8; it is read again, only to report this. Bytes count from 0."""
    _, compression = format_of(part.path) or ("", "")
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_bytes = part.start
    with _open(part, compression) as stream:
        while block := stream.read(1 << 20):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return f"byte {n_bytes - pending + error.start:,} is not UTF-8 ({error.reason})"
            n_bytes += len(block)
    return f"byte {n_bytes - len(decoder.getstate()[0]):,} is not UTF-8 (unexpected end of data)"


def _rows_before(part: Part) -> int:
    """Return the number of rows of the file before a part; counted only to report a mistake."""
    if format_of(part.path) == (".parquet", ""):
        metadata = _parquet(part.path).metadata
        return sum(metadata.row_group(group).num_rows for group in range(part.start))
    if not part.start:
        return 0
    with _open(Part(part.path, 0, part.start), "") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def _open(part: Part, compression: str) -> BinaryIO:
    """Open the bytes of a part as a stream."""
    source: Any = remote.open_file(part.path) if remote.is_remote(part.path) else part.path
    if compression == ".gz":
        return gzip.open(source)  # type: ignore[return-value]
    if compression == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(source, compression="zstd"))
    if source is not part.path:
        return source
    return io.BufferedReader(_Range(part), 1 << 20)


class _Range(io.RawIOBase):
    """The bytes of a part, read in blocks: a file without line ends is one part, of any size."""

    def __init__(self, part: Part) -> None:
        self._file = Path(part.path).open("rb", buffering=0)  # noqa: SIM115
        self._file.seek(part.start)
        self._left_bytes = part.end - part.start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_bytes = self._file.readinto(memoryview(buffer)[: self._left_bytes]) or 0
        self._left_bytes -= n_bytes
        return n_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


# --- text ---


def _plan_text(path: Path, data: mmap.mmap) -> list[Part]:
    """Return parts of whole documents. One that is longer than a part is cut at distances from its own start."""
    separator = END_OF_TEXT.encode()
    parts: list[Part] = []
    start, continues = 0, False
    while start < len(data):
        end, is_open = len(data), False
        if start + PART_BYTES < len(data):
            last = data.rfind(separator, start, start + PART_BYTES + len(separator))
            if last < 0 and (cut := _cut_near(data, start + PART_BYTES, separator)):
                end, is_open = cut, True
            elif last >= 0 or (last := data.find(separator, start + PART_BYTES)) >= 0:
                end = last + len(separator)
                end += data[end : end + 1] == b"\n"
        parts.append(Part(str(path), start, end, continues, is_open))
        start, continues = end, is_open
    return parts


def _cut_near(data: mmap.mmap, place: int, separator: bytes, window_bytes: int = 1 << 16) -> int | None:
    """Return the first place to cut after `place`, within a window and the document, or None."""
    window = data[place : place + window_bytes].partition(separator)[0]
    while window and window[0] & 0xC0 == 0x80:  # inside a character
        window, place = window[1:], place + 1
    text = window.decode(errors="ignore")
    cut = SAFE_CUT.search(text, 1)
    return place + len(text[: cut.start()].encode()) if cut else None


def _read_text(stream: BinaryIO, part: Part) -> Iterator[Piece]:
    """Yield the documents between `<|endoftext|>`, without a line end on either side; the file's end ends one."""
    buffer = ""
    has_started = part.continues  # whether a piece of the current document was yielded
    after_separator = False

    def piece(text: str, ends_document: bool) -> Iterator[Piece]:
        nonlocal has_started, after_separator
        if not has_started and after_separator:
            text = text.removeprefix("\n")
        if text.strip() or has_started:
            has_started = not ends_document
            yield Piece(text, ends_document)
        after_separator = after_separator or ends_document

    reader = io.TextIOWrapper(stream, encoding="utf-8-sig")  # line ends become \n
    while block := reader.read(BLOCK_CHARS):
        if "\0" in block:
            raise Damaged("has a NUL, which no text has; is this a text in UTF-8?")
        *documents, buffer = SEPARATOR.split(buffer + block)
        for document in documents:
            yield from piece(document, True)
        if len(buffer) > BLOCK_CHARS and (cut := _last_safe_cut(buffer)):
            yield from piece(buffer[:cut], False)
            buffer = buffer[cut:]
        if len(buffer) > MAX_UNCUT_CHARS:
            raise Damaged(
                f"more than {MAX_UNCUT_CHARS:,} characters without a space or line end between two words; "
                "a text of this size needs line ends, or <|endoftext|> between documents"
            )
    yield from piece(buffer, not part.is_open)


def _last_safe_cut(text: str, window: int = 4096) -> int:
    """Return the last place to cut that leaves a separator's length after it (it may be half-read), or 0."""
    end = len(text) - len(END_OF_TEXT) - 2
    return max((match.start() for match in SAFE_CUT.finditer(text, end - window, end)), default=0)


# --- JSONL ---


def _plan_lines(path: Path, data: mmap.mmap) -> list[Part]:
    parts: list[Part] = []
    start = 0
    while start < len(data):
        end = len(data)
        if start + PART_BYTES < len(data):
            end = data.rfind(b"\n", start, start + PART_BYTES) + 1 or data.find(b"\n", start) + 1 or end
        parts.append(Part(str(path), start, end))
        start = end
    return parts


def _read_lines(stream: BinaryIO) -> Iterator[Piece]:
    for row, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise Damaged(f"longer than {MAX_LINE_BYTES:,} bytes; a document of this size belongs in a .txt file", row)
        if line.isspace():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise Damaged(f"not UTF-8 ({error.reason})", row) from None
        except (ValueError, RecursionError) as error:
            if b"\r" in line.rstrip():
                raise Damaged("the lines end in CR alone; write LF: tr '\\r' '\\n' < OLD > NEW", row) from None
            raise Damaged(f'not JSON ({error}); each line must be an object such as {{"text": …}}', row) from None
        if not isinstance(value, dict) or TEXT_KEY not in value:
            keys = f"its keys are {listed(list(value))}" if isinstance(value, dict) else f"it is {type(value).__name__}"
            raise Damaged(f"must be a JSON object with the document under the key {TEXT_KEY!r}; {keys}", row)
        yield from _document(value[TEXT_KEY], row)


def _document(text: Any, row: int) -> Iterator[Piece]:
    """Yield a document that is in memory, in pieces."""
    if not isinstance(text, str):
        raise Damaged(f"{TEXT_KEY!r} must be a text, not {text!r:.60}", row)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Damaged("half of a surrogate pair, which no text has; fix or remove this document", row) from None
    if not text.strip():
        return
    start = 0
    while cut := SAFE_CUT.search(text, start + BLOCK_CHARS):
        yield Piece(text[start : cut.start()], False)
        start = cut.start()
    yield Piece(text[start:], True)


# --- Parquet ---


def _parquet(path: str) -> Any:
    """Open a file that has a column of texts. Raises Damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        source = remote.open_file(path) if remote.is_remote(path) else path
        file = pyarrow.parquet.ParquetFile(source, buffer_size=1 << 20)
    except pyarrow.ArrowInvalid as error:
        raise Damaged(f"not a Parquet file ({error})") from None
    names = file.schema_arrow.names
    if TEXT_KEY not in names:
        raise Damaged(f"no column {TEXT_KEY!r}, which must hold the documents; there are: {listed(names)}")
    return file


def _plan_parquet(path: str) -> list[Part]:
    metadata = _parquet(path).metadata
    sizes_bytes = [_text_bytes(metadata.row_group(group)) for group in range(metadata.num_row_groups)]
    parts: list[Part] = []
    start = part_bytes = 0
    for group, size_bytes in enumerate(sizes_bytes):
        if group > start and part_bytes + size_bytes > PART_BYTES:
            parts.append(Part(path, start, group))
            start, part_bytes = group, 0
        part_bytes += size_bytes
    return [*parts, Part(path, start, len(sizes_bytes))] if sizes_bytes else []


def _text_bytes(row_group: Any) -> int:
    columns = (row_group.column(i) for i in range(row_group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == TEXT_KEY)


def _read_parquet(part: Part) -> Iterator[Piece]:
    groups = range(part.start, part.end)
    row = 0
    for batch in _parquet(part.path).iter_batches(BATCH_ROWS, groups, columns=[TEXT_KEY], use_threads=False):
        for text in batch.column(0).to_pylist():
            row += 1
            yield from _document(text, row)
