"""Hashes of what a stage reads, as DVC itself computes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2core.tracking.state import input_hashes


def test_a_files_hash_is_dvcs_and_a_folders_the_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc_data.hashfile.hash import file_md5
    from dvc_objects.fs.local import LocalFileSystem

    monkeypatch.chdir(tmp_path)
    Path("data/raw/corpus").mkdir(parents=True)
    Path("data/tokens").mkdir()
    Path("data/raw/classification.jsonl").write_bytes(b"line\r\n" * 1000)
    assert input_hashes(["data/tokens"]) == {}, "there is no dvc.lock yet"
    Path("dvc.lock").write_text(
        "stages:\n  a: {outs: [{path: data/raw, md5: aa.dir}]}\n  b: {outs: [{path: data/tokens, md5: bb.dir}]}\n"
        "  c: {cmd: no outs}\n"
    )
    assert input_hashes(["data/raw/corpus", Path("data/tokens"), "data/raw/classification.jsonl", "models/own"]) == {
        "data/raw/corpus": "aa",
        "data/tokens": "bb",
        "data/raw/classification.jsonl": file_md5("data/raw/classification.jsonl", LocalFileSystem()),
    }


def test_a_damaged_lock_hides_nothing_but_hashes(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("{")
    assert input_hashes(["data/tokens"], tmp_path) == {}
