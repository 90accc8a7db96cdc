"""MLflow's store: where it is, and how it is opened and created."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gpt2core import environment, files
from gpt2core.deadline import within
from gpt2core.errors import UserError
from gpt2core.redact import redacted

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

EXPERIMENT = "gpt2core"
DATABASE = "mlflow.db"  # in the project's root
KIND = {"mlflow.experimentKind": "custom_model_development"}  # pages for training, not for prompts and traces
LOCK_TIMEOUT_S = 120.0  # the first stage on a new machine creates the database, which takes several seconds
CHECK_TIMEOUT_S = 3.0
REQUEST_TIMEOUT_S = 20.0  # longer than MLflow's attempts below take together
UPLOADS = ("log_artifact", "log_artifacts", "log_model_artifacts")  # take as long as their files are large
CLIENT_SETTINGS = {  # a dead server costs 3 s and a hanging one 15 s, not MLflow's 4 and 16 minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def is_enabled() -> bool:
    """Return whether to track at all: `GPT2CORE_TRACKING=off` disables it."""
    return not environment.is_off("GPT2CORE_TRACKING")


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
    them. So they are created in another file, which is then renamed. This also avoids waiting for the disk at each
    commit: 2 s instead of 7.
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
    """Return the experiment's id; create the experiment if it is missing.

    A server has its own artifact root. A database gets one that is not relative to the working directory, because
    `dvc exp run --temp` deletes that.
    """
    if (experiment := client.get_experiment_by_name(EXPERIMENT)) is not None:
        return experiment.experiment_id
    has_server = client.tracking_uri.startswith(("http://", "https://", "databricks"))
    location = None if has_server else (root / "mlartifacts").as_uri()
    return client.create_experiment(EXPERIMENT, artifact_location=location, tags=KIND)


def check(root: Path) -> None:
    """Find out within seconds whether the store can be opened, which MLflow tries for minutes.

    Raises:
        UserError: says what is wrong and what to do: the database is no regular file, no database, damaged, or locked,
            or made by another version of MLflow; the server does not answer.
    """
    uri = address(root)
    if _is_server(uri):
        _check_server(uri)
    elif uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if path.exists() or path.is_symlink():
            _check_database(path)


def _is_server(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


class _BoundedClient:
    """A client whose requests end in time: MLflow's own limit starts again with each byte that a server sends."""

    def __init__(self, client: MlflowClient, where: str) -> None:
        self._client, self._where = client, where

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute) or name in UPLOADS:
            return attribute

        def bounded(*args: Any, **options: Any) -> Any:
            try:
                return within(REQUEST_TIMEOUT_S, attribute, *args, **options)
            except TimeoutError:
                raise UserError(f"{self._where} did not complete an answer in {REQUEST_TIMEOUT_S:g} s") from None

        return bounded


def _check_server(uri: str) -> None:
    import requests

    def answers() -> None:
        """Ask for the server's version, of which a hundred bytes are enough, and a megabyte means another program."""
        url = f"{uri.rstrip('/')}/version"
        with requests.get(url, timeout=CHECK_TIMEOUT_S, allow_redirects=False, stream=True) as response:
            n_bytes = 0
            for chunk in response.iter_content(1 << 16):
                n_bytes += len(chunk)
                if n_bytes > 1 << 20:
                    raise requests.RequestException("no MLflow")

    try:
        within(CHECK_TIMEOUT_S, answers)
    except (requests.RequestException, TimeoutError, ValueError) as error:
        raise UserError(
            f"{redacted(uri)} does not answer ({type(error).__name__}); start it, or unset MLFLOW_TRACKING_URI"
        ) from None


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing database to read it.

    Not as read-only: what a killed writer left half-written is rolled back when the database is opened. SQLite opens a
    file that this user cannot write for reading.
    """
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=CHECK_TIMEOUT_S)


def _check_database(path: Path) -> None:
    move = f"move it away (mv {path} {path}.old); gpt2core sync-mlflow fills a new one from Git and metrics/"
    if not path.is_file():
        raise UserError(f"{path} is not a file; {move}")
    try:
        with contextlib.closing(connect(path)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                return  # MLflow creates its tables
            if "alembic_version" not in tables:
                raise UserError(f"{path} is the database of another program; {move}")
            (version,) = database.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
    except sqlite3.OperationalError as error:
        raise UserError(f"{path} cannot be opened ({error}); end the program that uses it") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is not a sound database ({error}); {move}") from None
    versions = _schema_versions()
    if version not in versions:
        raise UserError(
            f"{path} was written by another version of MLflow, with the schema {version!r}; "
            f"install that version, or {move}"
        )
    if not versions[version]:
        raise UserError(
            f"{path} was written by an older version of MLflow; back it up, then run: mlflow db upgrade sqlite:///{path}"
        )


def _schema_versions() -> dict[str, bool]:
    """Return the versions of the database's schema that MLflow knows, and whether each is its newest one.

    MLflow has a script per version, which names the version before it. It is not imported, which would take seconds.
    """
    package = importlib.util.find_spec("mlflow")
    folder = Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else Path()
    scripts = [path.read_text(encoding="utf-8") for path in (folder / "store/db_migrations/versions").glob("*.py")]
    earlier = {match[1] for script in scripts if (match := re.search(r"^down_revision\b.*?[\"'](\w+)", script, re.M))}
    known = {match[1] for script in scripts if (match := re.search(r"^revision\b.*?[\"'](\w+)", script, re.M))}
    return {version: version not in earlier for version in known}


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

    Args:
        root: the project; see `address`.

    Raises:
        UserError: the store cannot be opened as it is, with the remedy.
    """
    check(root)
    prepare_mlflow()
    from mlflow import MlflowClient

    # It writes tracebacks of errors that it raises as well.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    uri = address(root)
    if uri == f"sqlite:///{root / DATABASE}" and not (root / DATABASE).exists():
        with lock(root):
            local_store(root)
    client = MlflowClient(tracking_uri=uri)
    if _is_server(uri):
        client = cast("MlflowClient", _BoundedClient(client, redacted(uri)))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        with lock(root):
            return client, experiment_id_of(client, root)
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"the experiment {EXPERIMENT!r} was deleted; restore it: MLFLOW_TRACKING_URI={redacted(uri)} "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return client, experiment.experiment_id
