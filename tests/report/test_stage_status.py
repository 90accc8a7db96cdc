"""Outdated stages, in a small DVC project of shell commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpt2core.report.stage_status import outdated_stages

PIPELINE = """
stages:
  first: {cmd: cat a > b, deps: [a], outs: [b]}
  second: {cmd: cat b > c, deps: [b], outs: [c]}
  other: {cmd: cat d > e, deps: [d], outs: [e]}
"""


def dvc(root: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_changed_input_makes_its_stage_and_those_after_it_outdated(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "a").write_text("a")
    (tmp_path / "d").write_text("d")
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    assert outdated_stages(tmp_path).keys() == {"first", "second", "other"}  # nothing was run
    dvc(tmp_path, "repro", "--quiet")
    assert outdated_stages(tmp_path) == {}
    (tmp_path / "a").write_text("changed")
    assert outdated_stages(tmp_path) == {"first": "changed inputs: a", "second": "depends on first"}
    (tmp_path / "a").write_text("a")
    (tmp_path / "e").unlink()
    assert outdated_stages(tmp_path) == {"other": "changed outputs: e"}


def test_without_a_pipeline_nothing_is_outdated(tmp_path: Path) -> None:
    assert outdated_stages(tmp_path) == {}


@pytest.mark.slow
def test_a_damaged_pipeline_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    (tmp_path / "dvc.yaml").write_text("stages: [")
    assert outdated_stages(tmp_path) == {}
    assert "does not show which stages are outdated" in caplog.text
