"""The process that reads runs and the stages' status for the report: what its death costs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gpt2core.report import pipeline


def dies(*arguments: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_report_without_the_other_process_has_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/tokenize.json").write_text(json.dumps({"vocab_size": 960}))
    monkeypatch.setattr(pipeline, "look_for_runs", dies)
    page = pipeline.report_page(tmp_path)
    assert "960" in page and "could not be read" in page
    assert "Traceback" not in capfd.readouterr().err
