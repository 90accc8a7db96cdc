"""Which recorded runs made the present results."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from gpt2core.tracking import track_stage
from gpt2core.tracking.find_runs import find_runs
from tests.tracking.test_mlflow_run import PARAMS, client, runs


def record(stage: str, metrics: dict, error: bool = False) -> None:
    with contextlib.suppress(RuntimeError), track_stage(stage, PARAMS) as run:
        run.log_metrics({"tokens_per_s": 1234.5}, step=3)
        run.finish(metrics)
        if error:
            raise RuntimeError("stopped")


def test_the_newest_finished_run_with_just_these_metrics(root: Path) -> None:
    wanted = {"val_loss": 1.25, "name": "chrf", "nested": {"f1": 0.5}}
    record("pretrain", wanted)
    record("pretrain", wanted)
    record("pretrain", wanted | {"val_loss": 1.26})  # a later experiment
    record("pretrain", wanted, error=True)
    record("tokenize", {"vocab_size": 7})
    found = find_runs(root, ("tokenize", "pretrain", "finetune-classify"), {"pretrain": wanted})
    assert [run.stage for run in found] == ["tokenize", "pretrain"]
    expected = [run for run in runs(root)[1] if run.info.run_name == "pretrain"][1]
    assert found[1].run_id == expected.info.run_id
    assert found[1].url == (
        f"http://127.0.0.1:5000/#/experiments/{expected.info.experiment_id}/runs/{expected.info.run_id}"
    )
    assert found[1].duration_s == pytest.approx(expected.data.metrics["duration_s"])
    assert found[1].tokens_per_s == 1234.5


def test_a_stage_whose_results_nobody_recorded_has_no_run(root: Path) -> None:
    record("pretrain", {"val_loss": 1.25})
    assert find_runs(root, ("pretrain",), {"pretrain": {"val_loss": 1.25, "parameters": 7}}) == []


def test_without_a_store_there_are_no_runs_and_none_is_made(fresh_root: Path) -> None:
    assert find_runs(fresh_root, ("pretrain",), {}) == []
    assert not (fresh_root / "mlflow.db").exists()


def test_without_the_experiment_there_are_no_runs(root: Path) -> None:
    assert client(root).get_experiment_by_name("gpt2core") is None
    assert find_runs(root, ("pretrain",), {}) == []


def test_a_server_that_is_away_is_an_error_soon(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the default takes seconds
    with pytest.raises(Exception, match="127.0.0.1"):
        find_runs(root, ("pretrain",), {})
