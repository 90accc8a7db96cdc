"""The example of a search with Optuna: its trials are experiments, nested in the study's run, and it goes on."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tests.stages.conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the fixtures count, too
SMALL = {"pretrain.max_steps": 6, "pretrain.warmup_steps": 2, "pretrain.eval_interval_steps": 6}


def test_a_study_runs_experiments_and_goes_on(tiny_twins: tuple[Project, Project], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    project = tiny_twins[1].copy_to(tmp_path / "project")
    project.env = project.env | {"GPT2CORE_TRACKING": "on", "PYTHONPATH": str(project.root)}
    project.set_params(SMALL)
    project.commit("the baseline")
    said = [project.python("examples/optuna/study.py", "--trials", "1", timeout_s=300).stdout for _ in range(2)]

    table = csv.DictReader(io.StringIO(project.dvc("exp", "show", "--csv", timeout_s=120).stdout))
    experiments = {row["Experiment"]: row for row in table if row["Experiment"].startswith("study-")}
    assert experiments.keys() == {"study-0", "study-1"}
    losses = {name: float(_loss(row)) for name, row in experiments.items()}
    best = min(losses, key=lambda name: losses[name])
    assert f"in {best}: -S pretrain.lr={float(experiments[best]['pretrain.lr']):.6g}" in said[1]
    assert said[1].splitlines()[-1] == f"take it over: dvc exp apply {best}"

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project.root / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("gpt2core").experiment_id])
    (study,) = (run for run in runs if run.info.run_name == "study")
    nested = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == study.info.run_id}
    assert nested.keys() == losses.keys()
    for name, run in nested.items():
        assert run.data.metrics["pretrain.val_loss"] == losses[name]
        stages = {r.info.run_name for r in runs if r.data.tags.get("mlflow.parentRunId") == run.info.run_id}
        assert stages == {"pretrain"}
    assert (study.info.status, study.data.metrics) == ("FINISHED", {"best": losses[best]})
    assert project.git("status", "--porcelain") == ""


def _loss(row: dict[str, Any]) -> str:
    return row["pretrain_loss"]
