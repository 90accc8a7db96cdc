"""The time of the pipeline: without and with tracking in turn, each time into a new store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pipeline, rows
from benchmarks.machine import ROOT, Used
from gpt2core.params import load_params

TINY = load_params(ROOT / "profiles/tiny.yaml")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Stub the measured programs; record command and tracking. A tracked one takes 5 s more and leaves a store."""
    runs: list[tuple[str, str]] = []

    def run_measured(command: list[str], env: dict[str, str], interval_s: float, cwd: Path) -> Used:
        assert not any(name.startswith("MLFLOW") for name in env)
        assert not (cwd / "mlflow.db").exists() or env["GPT2CORE_TRACKING"] == "off"
        tracking = env["GPT2CORE_TRACKING"]
        if tracking == "on":
            (cwd / "mlflow.db").touch()
            (cwd / "mlartifacts/1").mkdir(parents=True)
        status = subprocess.check_output(["git", "log", "--format=%s"], cwd=cwd, text=True)
        assert status == "Copy\n" and load_params(cwd / "params.yaml") == TINY
        runs.append((" ".join(command[2:]), tracking))
        return Used(100.0 + len(runs) + (5 if tracking == "on" else 0), 0)

    monkeypatch.setattr(pipeline, "run_measured", run_measured)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    return runs


def test_tracking_alternates_and_then_nothing_is_to_be_done(runs: list[tuple[str, str]]) -> None:
    group = rows.repro_group(rounds=2, no_op_rounds=2, profile="tiny")
    found = group.measure()
    assert runs == [
        *(2 * [("dvc repro --force", "off"), ("dvc repro --force", "on")]),
        *(3 * [("dvc repro", "off"), ("import dvc.cli.parser, dvc.repo", "off")]),
    ]
    assert found["MLflow's time"] == [6.0, 6.0]
    share, seconds, no_op = group.rows
    assert share.ratio(found) == pytest.approx(6 / 108) and seconds.ratio(found) == pytest.approx(6 / 15)
    assert no_op.ratio(found) == pytest.approx(108 / 110)


def test_dvc_is_imported_as_by_repro() -> None:
    subprocess.run(pipeline.IMPORT_DVC, check=True)


def test_the_first_byte_is_timed_and_a_failure_told() -> None:
    code = "import time; time.sleep(0.2); print('a', flush=True); time.sleep(2)"
    assert 0.2 < pipeline.first_byte_s([sys.executable, "-c", code]) < 2.2
    for code in ("", "print('a', flush=True); raise SystemExit(3)"):
        with pytest.raises(RuntimeError, match="ended with"):
            pipeline.first_byte_s([sys.executable, "-c", code])


@pytest.mark.slow
def test_the_first_token_of_a_small_model() -> None:
    (times_s,) = pipeline.first_token(rounds=1).values()
    assert 0 < times_s[0] < 120
