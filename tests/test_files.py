from __future__ import annotations

import hashlib
import math
import os
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


def test_written_files_are_readable_by_others_as_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


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
