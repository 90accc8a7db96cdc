"""Files of documents: whatever their form and however they are cut, the same documents come out."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2core.corpus import documents
from gpt2core.corpus.documents import Piece, find_documents, plan, read
from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer
from gpt2core.tokenizer.train import train_bpe
from tests.corpus.corpora import BOOK, joined

TALES = [f"Tale {i}:  é, \u3000 ☃ and \U0001f98a{' more' * (i % 40)}." for i in range(200)]
PLAIN = f"\n{END_OF_TEXT}\n".join(TALES)
LINES = "".join(json.dumps({"id": i, "text": tale}) + "\n" for i, tale in enumerate(TALES))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([BOOK], 300)


def write_zst(path: Path, data: bytes) -> None:
    """Two frames, as files have that were put together."""
    half = len(data) // 2
    frames = []
    for part in (data[:half], data[half:]):
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(part)
        frames.append(path.read_bytes())
    path.write_bytes(b"".join(frames))


def write_parquet(path: Path, texts: list, name: str = "text") -> None:
    pq.write_table(pa.table({"id": range(len(texts)), name: texts}), path, row_group_size=7)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.txt": lambda path: path.write_text(PLAIN, encoding="utf-8"),
    "a.TXT.gz": lambda path: path.write_bytes(gzip.compress(PLAIN.encode())),
    "a.txt.zst": lambda path: write_zst(path, PLAIN.encode()),
    "a.jsonl": lambda path: path.write_text(LINES, encoding="utf-8"),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "a.jsonl.zst": lambda path: write_zst(path, LINES.encode()),
    "a.parquet": lambda path: write_parquet(path, TALES),
}


def pieces(path: Path) -> Iterator[Piece]:
    return (piece for part in plan(path) for piece in read(part))


@pytest.mark.parametrize("part_bytes", [50, 1000, 8 << 20])
@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part_bytes: int
) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", part_bytes)
    WRITERS[name](tmp_path / name)
    assert joined(pieces(tmp_path / name)) == TALES
    if part_bytes == 1000 and name in ("a.txt", "a.jsonl", "a.parquet"):
        assert len(plan(tmp_path / name)) > 10


@pytest.mark.parametrize("part_bytes", [300, 1 << 20])
@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_documents_are_the_same_however_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, block: int, part_bytes: int
) -> None:
    monkeypatch.setattr(documents, "BLOCK_CHARS", block)
    monkeypatch.setattr(documents, "PART_BYTES", part_bytes)
    path = tmp_path / "a.txt"
    path.write_text(f"one\n{END_OF_TEXT}\ntwo{END_OF_TEXT}\n{END_OF_TEXT}{BOOK}")
    found = list(pieces(path))
    assert joined(found) == ["one", "two", BOOK]
    ids = [i for piece in found if piece.text not in ("one", "two") for i in tokenizer.encode(piece.text)]
    assert ids == tokenizer.encode(BOOK), "a piece ends inside a token"


def test_parts_lie_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", 200)
    path = tmp_path / "a.txt"
    path.write_text(PLAIN + BOOK + "é" * 500 + f"{END_OF_TEXT}end", encoding="utf-8")
    parts = plan(path)
    assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].end == path.stat().st_size
    assert [part.continues for part in parts] == [False, *(part.is_open for part in parts[:-1])]


def test_where_a_long_document_is_cut_depends_on_its_own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", 500)

    def cuts(name: str, before: str, behind: str) -> list[str]:
        path = tmp_path / name
        path.write_text(before + BOOK + behind)
        texts = [("".join(p.text for p in read(part)), part.continues, part.is_open) for part in plan(path)]
        return [text for text, continues, is_open in texts if is_open and text in BOOK or continues and is_open]

    tale = f"A tale.\n{END_OF_TEXT}\n"
    alone = cuts("alone.txt", "", "")
    assert len(alone) > 10
    assert cuts("between.txt", 100 * tale, f"\n{END_OF_TEXT}\n" + 100 * tale) == alone


def test_the_separator_is_the_tokenizers() -> None:
    assert documents.END_OF_TEXT == END_OF_TEXT


def test_only_files_of_documents_are_found(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.jsonl.zst", "notes.md", "x.parquet.gz", "d.zst", "e.PARQUET"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_documents(tmp_path)] == [
        "a/c.jsonl.zst", "b.txt", "e.PARQUET",
    ]  # fmt: skip


def test_a_text_may_hold_the_separator_where_documents_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"write {END_OF_TEXT} here"}))
    assert joined(pieces(tmp_path / "a.jsonl")) == [f"write {END_OF_TEXT} here"]


OK = '{"text": "fine"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 au lait", r"a\.txt: byte 3 is not UTF-8"),
        ("a.txt.gz", gzip.compress(b"caf\xe9 au lait", mtime=0), r"a\.txt\.gz: byte 3 is not UTF-8"),
        ("a.txt.gz", gzip.compress(BOOK.encode(), mtime=0)[:-20], r"a\.txt\.gz: damaged or cut short"),
        ("a.txt.gz", b"no gzip at all", r"a\.txt\.gz: damaged or cut short"),
        ("a.txt.zst", b"no zstd at all", r"a\.txt\.zst: damaged or cut short"),
        ("a.jsonl", OK * 3 + "{", r"a\.jsonl, row 4: not JSON"),
        ("a.jsonl", OK * 900 + '"just text"\n', r"a\.jsonl, row 901: must be a JSON object .*'text'; it is str"),
        ("a.jsonl", OK + '{"content": "x", "id": 1}', r"row 2: .* under the key 'text'; its keys are content, id"),
        ("a.jsonl", OK + '\n{"text": null}', r"row 3: 'text' must be a text, not None"),
        ("a.jsonl", '{"text": "\\ud800"}', "row 1: half of a surrogate pair"),
        ("a.jsonl", b'{"text": "caf\xe9"}', r"row 1: not UTF-8"),
        ("a.jsonl.gz", gzip.compress(OK.encode() + b"[", mtime=0), r"a\.jsonl\.gz, row 2: not JSON"),
        ("a.parquet", b"PAR1 no more", r"a\.parquet: not a Parquet file"),
        ("a.parquet", ["a", "b"], r"a\.parquet: no column 'text'.*there are: id, body"),
        ("a.parquet", [*["fine"] * 30, None], r"a\.parquet, row 31: 'text' must be a text"),
    ],
)
def test_a_mistake_is_named_by_file_and_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | bytes | list, message: str
) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", 100)
    if isinstance(content, list):
        write_parquet(tmp_path / name, content, "body" if "body" in message else "text")
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        list(pieces(tmp_path / name))


def test_a_zst_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    write_zst(tmp_path / "a.txt.zst", PLAIN.encode())
    whole = (tmp_path / "a.txt.zst").read_bytes()
    (tmp_path / "a.txt.zst").write_bytes(whole[:-30])
    with pytest.raises(UserError, match="damaged or cut short"):
        list(pieces(tmp_path / "a.txt.zst"))


def test_a_large_file_without_line_ends_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    os.truncate(path, 2 << 30)
    (part,) = plan(path)
    tracemalloc.start()
    with documents._open(part, "") as stream:
        assert stream.read(4) == bytes(4)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.gz", gzip.compress(b"a tale\0of a NUL", mtime=0), "has a NUL"),
        ("a.txt", b"a tale\0of a NUL", "has a NUL"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"}\n'.encode("utf-16-le"), "row 1: not"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16-le"), "row 1: not"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "row 1: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', r"row 1: the lines end in CR alone; write LF: tr '\\r'"),
    ],
)
def test_what_is_no_text_in_utf8_with_line_ends_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        [*map(list, map(read, plan(tmp_path / name)))]


def test_an_error_in_a_late_part_names_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps({"text": "x" * 1000}) + "\n"
    n = 3 * documents.PART_BYTES // len(row)
    path.write_text(row * n + "{}\n")
    parts = plan(path)
    assert len(parts) > 2
    with pytest.raises(UserError, match=f"row {n + 1:,}: must be"):
        list(read(parts[-1]))
