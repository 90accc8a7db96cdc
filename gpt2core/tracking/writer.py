"""The one writer of MLflow runs: for a stage while it runs, and for `gpt2core sync-mlflow` afterwards.

MLflow keeps every row that it is sent, so a metric that is sent twice is drawn twice. A `RunWriter` knows what its run
has, and sends only what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2core.tracking.flatten import flatten, numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PIPELINE_TAG = "gpt2core.pipeline"  # on a parent run: the key of its pipeline run
RESULTS_TAG = "gpt2core.results"  # on a parent run: the fingerprint of the state that it shows; see state.py
PARENT_TAG = "mlflow.parentRunId"  # on the run of a stage
SYSTEM = "system/"  # metrics of the machine, whose steps are not those of the training


class Point(NamedTuple):
    """A value of a metric at a step."""

    key: str
    value: float
    timestamp_ms: int
    step: int


class RunWriter:
    """Writes to a run what it does not have yet."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self.client, self.run, self.run_id = client, run, run.info.run_id
        self.params, self.tags = dict(run.data.params), dict(run.data.tags)
        rows = run.data.to_proto().metrics
        self._latest = {row.key: Point(row.key, row.value, row.timestamp, row.step) for row in rows}
        self._values: dict[str, dict[int, float]] = {}  # by step, of metrics whose history was needed
        self._waiting: dict[str, list[Any]] | None = None  # what `in_one_request` will send

    @property
    def is_finished(self) -> bool:
        """Whether the run was finished when it was read from the store."""
        return self.run.info.status == "FINISHED"

    @contextlib.contextmanager
    def in_one_request(self) -> Iterator[None]:
        """Send the params, tags, and metrics that are logged within together: each request takes a while."""
        self._waiting = waiting = dict[str, list[Any]]()
        try:
            yield
        finally:
            self._waiting = None
        self._log(**waiting)

    def last_step(self, system: bool = False) -> int:
        """Return the last step of the training's metrics, or of the machine's; -1 if there are none."""
        points = list(self._latest.values())  # a thread may be sending
        return max((point.step for point in points if point.key.startswith(SYSTEM) == system), default=-1)

    def log_params(self, params: Mapping[str, Any]) -> int:
        """Log the params that are missing, nested ones flattened. Return their number."""
        from mlflow.entities import Param

        missing = {key: str(value) for key, value in flatten(params).items() if key not in self.params}
        self._log(params=[Param(*param) for param in missing.items()])
        self.params |= missing
        return len(missing)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set the tags that are missing or have another value."""
        from mlflow.entities import RunTag

        changed = {key: str(value) for key, value in tags.items() if self.tags.get(key) != str(value)}
        self._log(tags=[RunTag(*tag) for tag in changed.items()])
        self.tags |= changed

    def log_points(self, points: Iterable[Point]) -> None:
        """Log points, except those whose value the run has at that step already."""
        self._send(point for point in points if not _equal(self._value(point.key, point.step), point.value))

    def log_missing_steps(self, points: Iterable[Point]) -> None:
        """Log points, except those at whose step the run has a value already."""
        self._send(point for point in points if self._value(point.key, point.step) is None)

    def log_results(self, metrics: Mapping[str, Any], timestamp_ms: int, step: int = 0) -> int:
        """Make each number the latest value of its metric. Return how many metrics had another latest value.

        Args:
            metrics: nested names are joined.
            timestamp_ms: milliseconds since 1970.
            step: the last step, if the run does not have a later one.
        """
        step = max(step, self.last_step())
        points = [Point(key, value, timestamp_ms, step) for key, value in numbers(metrics).items()]
        changed = [p for p in points if p.key not in self._latest or not _equal(self._latest[p.key].value, p.value)]
        self._send(changed)
        return len(changed)

    def log_model_results(self, model_id: str, metrics: Mapping[str, Any], timestamp_ms: int) -> None:
        """Show the results on a model's page, too: as the run's own points, of which MLflow then adds none."""
        from mlflow.entities import Metric

        step = max(0, self.last_step())
        points = [
            point
            if (point := self._latest.get(key)) and point.value == value
            else Point(key, value, timestamp_ms, step)
            for key, value in numbers(metrics).items()
        ]
        rows = [Metric(*point, model_id, run_id=self.run_id) for point in points]
        self._log(metrics=rows)

    def log_inputs(self, hashes: Mapping[str, str]) -> None:
        """Show the inputs, by the MD5 that DVC knows: as tags `input.<path>`, and as MLflow's datasets."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = []
        for path, md5 in hashes.items():
            context = "base model" if path.startswith("models/") else "training"
            source = json.dumps({"path": path, "md5": md5})
            tags = [InputTag("mlflow.data.context", context)]
            datasets.append(DatasetInput(Dataset(path, md5, "dvc", source), tags))
        self.set_tags({f"input.{path}": md5 for path, md5 in hashes.items()})
        if datasets:
            self.client.log_inputs(self.run_id, datasets)

    def resume(self, tags: Mapping[str, Any], name: str | None = None) -> None:
        """Show the run as running again, without the error that it ended with."""
        self.client.update_run(self.run_id, status="RUNNING", name=name)
        self.set_tags(tags)
        if self.tags.pop("error", None):
            self.client.delete_tag(self.run_id, "error")

    def end(self, status: str = "FINISHED", at_ms: int | None = None) -> None:
        """End the run, by default now."""
        self.client.set_terminated(self.run_id, status, at_ms)

    def _value(self, key: str, step: int) -> float | None:
        """Return the value that the run has at a step. Only a step before the latest one needs a request."""
        latest = self._latest.get(key)
        if latest is None or step > latest.step:
            return None
        if step == latest.step:
            return latest.value
        if key not in self._values:
            history = self.client.get_metric_history(self.run_id, key)
            self._values[key] = {row.step: row.value for row in sorted(history, key=lambda row: row.timestamp)}
        return self._values[key].get(step)

    def _send(self, points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        self._log(metrics=[Metric(*point) for point in map(self._note, points)])

    def _log(self, **entities: list[Any]) -> None:
        """Send params, tags, or metrics, if there are any, or let them wait."""
        if self._waiting is not None:
            for kind, added in entities.items():
                self._waiting.setdefault(kind, []).extend(added)
        elif any(entities.values()):
            metrics, params, tags = (entities.get(kind, []) for kind in ("metrics", "params", "tags"))
            self.client.log_batch(self.run_id, metrics, params, tags)

    def _note(self, point: Point) -> Point:
        """Remember a point that is sent. Of several values at a step, MLflow takes the one with the latest time."""
        latest = self._latest.get(point.key)
        if latest is not None and point.step == latest.step:
            point = point._replace(timestamp_ms=max(point.timestamp_ms, latest.timestamp_ms + 1))
        if latest is None or point.step >= latest.step:
            self._latest[point.key] = point
        self._values.get(point.key, {})[point.step] = point.value
        return point


class Writer:
    """Finds and creates the runs of an experiment."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id

    @cached_property
    def identity(self) -> str:
        """What distinguishes this store from others, also from one at the same address that was deleted."""
        experiment = self.client.get_experiment(self.experiment_id)
        text = f"{experiment.artifact_location} {experiment.experiment_id} {experiment.creation_time}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def get(self, run_id: str) -> RunWriter:
        """Return a run as it is now."""
        return RunWriter(self.client, self.client.get_run(run_id))

    def find(self, tag: str, value: str) -> RunWriter | None:
        """Return the newest run whose tag has this value."""
        runs = self._search(f"tags.`{tag}` = '{value}'", "DESC", max_results=1)
        return RunWriter(self.client, runs[0]) if runs else None

    def children(self, parent_id: str) -> list[RunWriter]:
        """Return the runs of a pipeline run's stages, the oldest first."""
        return [RunWriter(self.client, run) for run in self._search(f"tags.`{PARENT_TAG}` = '{parent_id}'", "ASC")]

    def create(self, name: str, tags: Mapping[str, str], at_ms: int | None = None) -> RunWriter:
        """Create a run, started by default now."""
        run = self.client.create_run(self.experiment_id, start_time=at_ms, run_name=name, tags=dict(tags))
        return RunWriter(self.client, run)

    def _search(self, condition: str, order: str, **options: Any) -> list[Run]:
        order_by = [f"attributes.start_time {order}"]
        return list(self.client.search_runs([self.experiment_id], condition, order_by=order_by, **options))


def _equal(value: float | None, other: float) -> bool:
    return value is not None and math.isclose(value, other, rel_tol=1e-12)
