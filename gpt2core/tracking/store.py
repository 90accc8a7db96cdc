"""MLflow's store: opened where it is, made where it is missing, and written to in batches."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2core import files
from gpt2core.tracking.flatten import batches, flatten

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

EXPERIMENT = "gpt2core"
DATABASE = "mlflow.db"  # in the project's root
KIND = {"mlflow.experimentKind": "custom_model_development"}  # pages for training, not for prompts and traces
MAX_BATCH_METRICS, MAX_BATCH_PARAMS, MAX_BATCH_TAGS = 1000, 100, 100  # MLflow's limits on one request
LOCK_TIMEOUT_S = 120.0  # the first stage on a new machine creates the database, which takes several seconds
CLIENT_SETTINGS = {  # a dead server costs 3 s and a hanging one 15 s, not MLflow's 4 and 16 minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MetricRow(NamedTuple):
    key: str
    value: float
    timestamp_ms: int
    step: int


def is_wanted() -> bool:
    """Whether to track at all: `GPT2CORE_TRACKING=off` says no."""
    return os.environ.get("GPT2CORE_TRACKING", "").lower() not in ("off", "0", "false", "no")


def prepare_mlflow() -> None:
    """Settings that MLflow reads when it is imported, or that it would inherit."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.pop("MLFLOW_RUN_ID", None)  # an inherited run would win over ours
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every migration of a new database


def local_store(root: Path) -> None:
    """Create the project's own database where it is missing. The caller holds the lock.

    MLflow builds the tables in some hundred commits, and a process that is killed there must leave no half of them
    behind. So they are built in another file, which is then renamed; that also spares waiting for the disk at each
    commit, 2 s instead of 7.
    """
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def do_not_wait(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    database = root / DATABASE
    if not database.exists():
        event.listen(Engine, "connect", do_not_wait)
        try:
            with files.atomic_path(database) as temporary:
                MlflowClient(tracking_uri=f"sqlite:///{temporary}").search_experiments(max_results=1)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
        finally:
            event.remove(Engine, "connect", do_not_wait)


def experiment_id_of(client: MlflowClient, root: Path) -> str:
    """The experiment's id. A server has an artifact root of its own; a database gets one that is not relative to the
    working directory, since that of `dvc exp run --temp` is deleted."""
    if (experiment := client.get_experiment_by_name(EXPERIMENT)) is not None:
        return experiment.experiment_id
    has_server = client.tracking_uri.startswith(("http://", "https://", "databricks"))
    location = None if has_server else (root / "mlartifacts").as_uri()
    return client.create_experiment(EXPERIMENT, artifact_location=location, tags=KIND)


def lock(root: Path) -> FileLock:
    """Between the processes that may create the store, or a parent run in it."""
    return files.lock(root / ".locks" / "mlflow.lock", LOCK_TIMEOUT_S)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """No garbage collection while MLflow's two thousand modules are imported, nor of them later: nothing in them is
    garbage, and walking through all of it again and again takes a sixth of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@_without_collector()
def open_store(root: Path) -> tuple[MlflowClient, str]:
    """A client, and the experiment's id. The caller has called `prepare_mlflow`, and does not hold the lock.

    The first request of a process takes more than a second. Only what must not happen twice is done under the lock, or
    many stages that start at once would wait for each other.

    Args:
        root: the project, whose own database is used unless `MLFLOW_TRACKING_URI` is set.
    """
    from mlflow import MlflowClient

    # It writes tracebacks of errors that it raises as well.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        if not (root / DATABASE).exists():
            with lock(root):
                local_store(root)
        address = f"sqlite:///{root / DATABASE}"
    client = MlflowClient(tracking_uri=address)
    if (experiment := client.get_experiment_by_name(EXPERIMENT)) is not None:
        return client, experiment.experiment_id
    with lock(root):
        return client, experiment_id_of(client, root)


def send_metrics(client: MlflowClient, run_id: str, rows: Iterable[MetricRow]) -> None:
    """Log metrics, in as few requests as MLflow allows."""
    from mlflow.entities import Metric

    for batch in batches(rows, MAX_BATCH_METRICS):
        client.log_batch(run_id, metrics=[Metric(*row) for row in batch])


def send_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Log params, nested ones flattened."""
    from mlflow.entities import Param

    for batch in batches(flatten(params).items(), MAX_BATCH_PARAMS):
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in batch])


def send_tags(client: MlflowClient, run_id: str, tags: Mapping[str, Any]) -> None:
    """Set tags."""
    from mlflow.entities import RunTag

    for batch in batches(tags.items(), MAX_BATCH_TAGS):
        client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in batch])
