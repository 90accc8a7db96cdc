"""MLflow's store: where it is, and how it is opened and created."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core import files

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

EXPERIMENT = "gpt2core"
DATABASE = "mlflow.db"  # in the project's root
KIND = {"mlflow.experimentKind": "custom_model_development"}  # pages for training, not for prompts and traces
LOCK_TIMEOUT_S = 120.0  # the first stage on a new machine creates the database, which takes several seconds
CLIENT_SETTINGS = {  # a dead server costs 3 s and a hanging one 15 s, not MLflow's 4 and 16 minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def is_enabled() -> bool:
    """Return whether to track at all: `GPT2CORE_TRACKING=off` disables it."""
    return os.environ.get("GPT2CORE_TRACKING", "").lower() not in ("off", "0", "false", "no")


def address(root: Path) -> str:
    """Return the tracking URI: `MLFLOW_TRACKING_URI` if it is set, otherwise the project's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / DATABASE}"


def prepare_mlflow() -> None:
    """Change the settings that MLflow reads when it is imported, and those that it would inherit."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.pop("MLFLOW_RUN_ID", None)  # an inherited run would win over ours
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it reports every migration of a new database


def local_store(root: Path) -> None:
    """Create the project's own database if it is missing. The caller holds the lock.

    MLflow creates the tables in about a hundred commits, and a process that is killed meanwhile must not leave some of
    them. So they are created in another file, without waiting for the disk at each commit (2 s instead of 7).
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


def lock(root: Path) -> FileLock:
    """Return the lock between the processes that may create the store, or a parent run in it."""
    return files.lock(root / ".locks" / "mlflow.lock", LOCK_TIMEOUT_S)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Disable garbage collection while MLflow's two thousand modules are imported, and exclude them later.

    They contain no garbage, and walking through them again and again takes a sixth of the time.
    """
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
    """Return a client, and the experiment's id. The caller does not hold the lock.

    The first request of a process takes more than a second. Only what must not happen twice is done under the lock, or
    many stages that start together would wait for each other.
    """
    prepare_mlflow()
    from mlflow import MlflowClient

    # It writes tracebacks of errors that it raises as well.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    uri = address(root)
    if uri == f"sqlite:///{root / DATABASE}" and not (root / DATABASE).exists():
        with lock(root):
            local_store(root)
    client = MlflowClient(tracking_uri=uri)
    if (experiment := client.get_experiment_by_name(EXPERIMENT)) is not None:
        return client, experiment.experiment_id
    with lock(root):
        if (experiment := client.get_experiment_by_name(EXPERIMENT)) is not None:
            return client, experiment.experiment_id
        # A server has its own artifact root. `dvc exp run --temp` deletes the working directory: no relative one.
        has_server = uri.startswith(("http://", "https://", "databricks"))
        location = None if has_server else (root / "mlartifacts").as_uri()
        return client, client.create_experiment(EXPERIMENT, artifact_location=location, tags=KIND)
