from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2core import files
from gpt2core.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_directory_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    with files.atomic_dir(tmp_path / "d") as folder:
        (folder / "old").touch()
    with pytest.raises(RuntimeError), files.atomic_dir(tmp_path / "d") as folder:
        (folder / "new").touch()
        raise RuntimeError
    assert os.listdir(tmp_path) == ["d"]
    with files.atomic_dir(tmp_path / "d") as folder:
        (folder / "newer").touch()
    assert os.listdir(tmp_path / "d") == ["newer"]


# A writer that says when it is in the midst of its work, and waits there.
WRITER = """
import sys
from gpt2core import files
with getattr(files, sys.argv[1])(sys.argv[2]) as temporary:
    if sys.argv[1] == "atomic_dir":
        temporary = temporary / "file"
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["atomic_path", "atomic_dir"])
def test_the_next_writer_removes_what_killed_ones_left_and_nothing_else(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a[1]"
    backup = tmp_path / ".a[1].mine.tmp"  # somebody's own, by its content
    backup.mkdir()
    (backup / "file").touch()
    (tmp_path / ".a[1].empty.tmp").mkdir()  # of a writer that was killed before it had its lock
    command = [sys.executable, "-c", WRITER, kind, str(target)]
    killed, living = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    try:
        for writer in (killed, living):
            assert writer.stdout.readline() == "writing\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait(30)
        before = {path.name for path in tmp_path.iterdir()}
        assert len(before) >= 3  # of the killed, of the living and the backup
        assert target.name not in before
        files.write_text(target, "whole")
        after = {path.name for path in tmp_path.iterdir()} - {target.name, backup.name}
        assert len(after) == 1  # of the living one
        assert target.read_text() == "whole"
        living.communicate("", timeout=30)  # goes on undisturbed
        assert living.returncode == 0
        assert ((target / "file") if kind == "atomic_dir" else target).read_text() == "half"
        assert {path.name for path in tmp_path.iterdir()} == {target.name, backup.name}
    finally:
        for writer in (killed, living):
            writer.kill()
            writer.communicate()


def test_many_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = "import sys; from gpt2core import files\nfor n in range(100): files.write_text(sys.argv[1], str(n) * 1000)"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert (tmp_path / "a").read_text() == "99" * 1000
    assert os.listdir(tmp_path) == ["a"]


def test_a_writer_whose_new_folder_is_swept_away_takes_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock's library makes sure of the folder: another writer may remove it between its two looks at it."""
    make, swept = os.mkdir, []

    def sweep(path: str, mode: int = 0o777) -> None:
        if os.path.isdir(path) and str(path).endswith(".tmp") and not swept:
            swept.append(path)
            os.rmdir(path)
            raise FileExistsError(path)
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", sweep)
    files.write_text(tmp_path / "a", "x")
    assert swept and os.listdir(tmp_path) == ["a"]


def test_a_directory_is_removed_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it deletes file by file, the directory is no longer there, and the next removal ends the work."""
    code = """
import os, shutil, signal, sys
from gpt2core import files
shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
files.remove_dir(sys.argv[1])
"""
    for path in (tmp_path / "d/inner", tmp_path / "other"):
        path.mkdir(parents=True)
        (path / "file").touch()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "d")], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "d").exists()
    files.remove_dir(tmp_path / "d")
    assert os.listdir(tmp_path) == ["other"]


def test_written_files_are_readable_by_others_as_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_file_has_two_names_or_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("x")
    files.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert os.path.samefile(tmp_path / "a", tmp_path / "b")

    def no_link(*_: Path) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", no_link)
    files.link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "x"
    assert not os.path.samefile(tmp_path / "a", tmp_path / "c")


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"ü": [1.5, None]})
    assert files.read_json(path) == {"ü": [1.5, None]}
    with pytest.raises(ValueError):
        files.write_json(path, math.nan)
    path.write_text('{"a": 1,\n b}')
    with pytest.raises(UserError, match="line 2, column 2"):
        files.read_json(path)
    path.write_bytes(b'"caf\xe9"')
    with pytest.raises(UserError, match="byte 4 is not UTF-8"):
        files.read_json(path)


def test_csv(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": 0.1 + 0.2}, {"a": None, "b": 2.0}]
    files.write_csv(tmp_path / "a.csv", ("a", "b"), rows)
    assert (tmp_path / "a.csv").read_bytes() == b"a,b\n1,0.3\n,2\n"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


# --- what people call a text ---


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"ab\xffcd", ["byte 2", "iconv -f latin1"]),
        ("ab".encode("utf-16"), ["byte 0", "iconv -f utf-16"]),
        (b"ab\0cd", ["byte 2", "NUL"]),
    ],
)
def test_what_is_no_utf_8_is_refused_with_the_byte(tmp_path: Path, content: bytes, facts: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        files.read_text(path)
    assert all(fact in str(error.value) for fact in [str(path), *facts])


def test_byte_order_marks_and_line_ends_do_not_change_a_document(tmp_path: Path) -> None:
    for name, content in {
        "lf": b"a\nb\n",
        "crlf": b"a\r\nb\r\n",
        "cr": b"a\rb\r",
        "bom": b"\xef\xbb\xbfa\nb\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert files.read_document(tmp_path / name) == "a\nb\n"
    assert files.read_text(tmp_path / "bom") == "a\nb\n"
    assert files.read_text(tmp_path / "crlf") == "a\r\nb\r\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_records_are_read_with_any_line_end(tmp_path: Path, end: str) -> None:
    """A JSON text escapes line ends, and U+0085 and U+2028 end no line."""
    rows = [{"text": "a\u2028b"}, {"text": "c\rd\u0085"}]
    (tmp_path / "a.jsonl").write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())
    assert files.read_records(tmp_path / "a.jsonl") == rows
    assert list(files.numbered_lines(f"a{end}{end}b")) == [(1, "a"), (3, "b")]


@pytest.mark.timeout(20)
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "real").write_text("text")
    assert files.read_text(tmp_path / "linked") == "text"
    for name in ("pipe", "zero", "loop", ".", "missing", "a\0b", "x" * 300):
        with pytest.raises(UserError) as error:
            files.read_text(tmp_path / name)
        assert str(tmp_path) in str(error.value)


def test_a_file_past_its_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 101)
    with pytest.raises(UserError, match="100 bytes"):
        files.read_text(tmp_path / "a", max_bytes=100)
    assert len(files.read_text(tmp_path / "a", max_bytes=101)) == 101


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("[" * 200_000, "nested"),
        ('{"a":' * 100_000, "nested"),
        ("9" * 5000, "digits"),
        ("{'a': 1}", "line 1, column 2"),
    ],
)
def test_hostile_json_is_one_message(tmp_path: Path, content: str, fact: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=fact) as error:
        files.read_json(tmp_path / "a.json")
    assert "a.json" in str(error.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines_are_read_wherever_json_is(tmp_path: Path, name: str, end: str) -> None:
    rows = [{"a": 1}, {"a": "x\u2028y"}, {"a": None}]
    (tmp_path / name).write_bytes(end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    assert files.read_records(tmp_path / name) == rows
    (tmp_path / name).write_text(json.dumps(rows, indent=1))
    assert files.read_records(tmp_path / name) == rows
    (tmp_path / name).write_text('{"a": 1}\n{"a": 2\n')
    with pytest.raises(UserError, match="row 2"):
        files.read_records(tmp_path / name)


def test_csv_rows_have_the_header_s_cells(tmp_path: Path) -> None:
    long = "x" * 300_000  # the csv module allows 131,072 by default
    path = tmp_path / "a.csv"
    path.write_text(f'a, b\n1,"two\nlines"\n\n3,{long}\n')
    header, rows = files.read_csv(path)
    assert (header, list(rows)) == (["a", "b"], [(3, ["1", "two\nlines"]), (5, ["3", long])])
    for row in ("1,2,3", "1", "1,2,"):
        path.write_text(f"a,b\n1,2\n{row}\n")
        with pytest.raises(UserError, match="row 3"):
            list(files.read_csv(path)[1])
    with pytest.raises(UserError, match="row 2"):
        list(files.read_csv("name", 'a,b\n"1,2\n')[1])
    assert files.read_csv("name", "")[0] == []
