"""The MLflow runs that made the project's present results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core.errors import first_line
from gpt2core.redact import redacted
from gpt2core.tracking import store
from gpt2core.tracking.flatten import numbers
from gpt2core.tracking.state import file_stem

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE_RUNS, MAX_PAGES = 10, 20  # of one stage, the newest, that are searched
LOCAL_PAGE = "http://127.0.0.1:5000"  # where `make mlflow` shows the project's own database


@dataclass(frozen=True)
class FoundRun:
    """A stage's run: its page, start, duration, throughput, and commit."""

    stage: str
    run_id: str
    url: str
    started: str
    duration_s: float | None
    tokens_per_s: float | None
    revision: str


def find_runs(root: Path, stages: Iterable[str], metrics: Mapping[str, Mapping[str, Any]]) -> list[FoundRun]:
    """Return, for each stage, the newest run that finished with exactly the present metrics, if there is one.

    Args:
        root: the project.
        stages: names in dvc.yaml.
        metrics: content of the files in metrics/, by stem; a stage without one takes its newest run.

    Raises:
        Exception: any error of MLflow, its database, or its server.
    """
    address = store.address(root)
    if address.startswith("sqlite:///") and not Path(address.removeprefix("sqlite:///")).exists():
        return []
    store.prepare_mlflow()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(store.EXPERIMENT)
    if experiment is None:
        return []
    page = redacted(address.rstrip("/")) if address.startswith(("http://", "https://")) else LOCAL_PAGE
    found_runs = []
    for stage in stages:
        expected = numbers(metrics.get(file_stem(stage), {}))
        newest = _newest_runs(client, experiment.experiment_id, stage)
        if run := next((run for run in newest if _has(run.data.metrics, expected)), None):
            found_runs.append(
                FoundRun(
                    stage,
                    run.info.run_id,
                    f"{page}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}",
                    f"{datetime.fromtimestamp(run.info.start_time / 1000):%Y-%m-%d %H:%M}",
                    run.data.metrics.get("duration_s"),
                    run.data.metrics.get("tokens_per_s"),
                    run.data.tags.get("git_revision", "")[:7],
                )
            )
    return found_runs


def look_for_runs(
    root: Path, stages: Iterable[str], metrics: Mapping[str, Mapping[str, Any]]
) -> tuple[list[FoundRun], str]:
    """Return what `find_runs` finds, or none and the reason."""
    try:
        return find_runs(root, stages, metrics), ""
    except Exception as error:
        return [], f"{type(error).__name__}: {first_line(error)}"


def _newest_runs(client: MlflowClient, experiment_id: str, stage: str) -> Iterator[Run]:
    """Yield the finished runs of a stage, the newest first; most often the first one is wanted."""
    token: str | None = None
    for _ in range(MAX_PAGES):
        page = client.search_runs(
            [experiment_id], f"tags.stage = '{stage}' and attributes.status = 'FINISHED'",
            max_results=PAGE_RUNS, order_by=["attributes.start_time DESC"], page_token=token,
        )  # fmt: skip
        yield from page
        if not (token := page.token):
            return


def _has(logged: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    return all(math.isclose(logged.get(key, math.nan), value, rel_tol=1e-9) for key, value in expected.items())
