"""The MLflow runs that made the results that lie in the project now."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2core.tracking import store
from gpt2core.tracking.flatten import numbers

MAX_RUNS = 200  # of one stage, the newest, that are searched
LOCAL_PAGE = "http://127.0.0.1:5000"  # where `make mlflow` shows the project's own database


@dataclass(frozen=True)
class FoundRun:
    """A stage's run: where it is shown, when it began, how long it took, how fast it trained, its code's commit."""

    stage: str
    run_id: str
    url: str
    started: str
    duration_s: float | None
    tokens_per_s: float | None
    revision: str


def find_runs(root: Path, stages: Iterable[str], metrics: Mapping[str, Mapping[str, Any]]) -> list[FoundRun]:
    """For each stage the newest run that finished with just the metrics that are there now; none where none did.

    Args:
        root: the project.
        stages: their names in dvc.yaml.
        metrics: what the files of metrics/ hold, by their stems; a stage without one takes its newest run.

    Raises:
        Exception: whatever MLflow, its database or its server have to say.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    if address.startswith("sqlite:///") and not Path(address.removeprefix("sqlite:///")).exists():
        return []
    store.prepare_mlflow()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(store.EXPERIMENT)
    if experiment is None:
        return []
    page = address.rstrip("/") if address.startswith(("http://", "https://")) else LOCAL_PAGE
    found = []
    for stage in stages:
        runs = client.search_runs(
            [experiment.experiment_id],
            f"tags.stage = '{stage}' and attributes.status = 'FINISHED'",
            max_results=MAX_RUNS,
            order_by=["attributes.start_time DESC"],
        )
        wanted = numbers(metrics.get(stage.replace("-", "_"), {}))
        for run in runs:
            if _has(run.data.metrics, wanted):
                found.append(_recorded(stage, run, f"{page}/#/experiments/{experiment.experiment_id}"))
                break
    return found


def _has(logged: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(math.isclose(logged.get(key, math.nan), value, rel_tol=1e-9) for key, value in wanted.items())


def _recorded(stage: str, run: Any, page: str) -> FoundRun:
    began = datetime.fromtimestamp(run.info.start_time / 1000)
    return FoundRun(
        stage,
        run.info.run_id,
        f"{page}/runs/{run.info.run_id}",
        f"{began:%Y-%m-%d %H:%M}",
        run.data.metrics.get("duration_s"),
        run.data.metrics.get("tokens_per_s"),
        run.data.tags.get("git_revision", "")[:7],
    )
