"""One MLflow run for a pipeline run, and one nested in it for each stage that ran.

DVC starts each stage as a process of its own and tells it nothing of an MLflow run. So the stages of one pipeline run
find each other by a tag on the parent run; whoever comes first creates it, under a lock between processes.

    with stage_run("pretrain", params, sections=("data", "pretrain")) as run:
        run.log_metrics({"train_loss": 3.2}, step=10)
        run.finish({"val_loss": 3.1})

Tracking never stops a stage: the first error of MLflow or of the network becomes one warning, and the stage goes on
untracked. `GPT2CORE_TRACKING=off` turns it off; `MLFLOW_TRACKING_URI` sends it to a server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2core import config, files, runtime
from gpt2core.errors import UserError
from gpt2core.track.environment import recorded_environment

if TYPE_CHECKING:
    import psutil
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "gpt2core"
PIPELINE_TAG = "gpt2core.pipeline"  # on a parent run: the pipeline run that it stands for
FLUSH_INTERVAL_S = 5.0  # a call costs MLflow some 20 ms, whether it brings one metric or a hundred
MAX_BATCH_METRICS, MAX_BATCH_PARAMS = 1000, 100  # MLflow's limits on one request
LOCK_TIMEOUT_S = 120.0  # the first stage on a new machine creates the database, which takes several seconds
END_TIMEOUT_S = 30.0
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


class Pipeline(NamedTuple):
    """What all stages of one pipeline run agree on: the value of the parent's tag, and the parent's name."""

    key: str
    name: str


@contextlib.contextmanager
def stage_run(
    stage: str, params: config.Params, *, sections: tuple[str, ...] | None = None, run_file: Path | None = None
) -> Iterator[StageRun]:
    """Track a stage as a child of its pipeline's run.

    The child ends FINISHED, FAILED (an exception) or KILLED (Ctrl-C), and its parent takes over the status of the
    stage that ended last: DVC runs the stages of a pipeline one after the other and stops at the first that fails.

    Args:
        stage: the stage's name in dvc.yaml.
        params: all params; the parent run gets them all.
        sections: the sections that the stage reads. The child gets these and the seed; None for all.
        run_file: where a stage that can be resumed notes its run until it is through; one that finds a run there
            continues it.

    Raises:
        Nothing of its own, whatever happens to MLflow; exceptions of the stage pass through.
    """
    run = StageRun(stage, run_file)
    start_s = time.monotonic()
    run._start(params, sections)
    status, reason = "FINISHED", ""
    try:
        with recorded_environment(stage):
            yield run
    except BaseException as error:
        status, reason = _outcome(error)
        raise
    finally:
        run._end(status, reason, time.monotonic() - start_s)


def _outcome(error: BaseException) -> tuple[str, str]:
    """The MLflow status that an exception means, and a line on it."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", "interrupted"
    if isinstance(error, SystemExit) and not error.code:
        return "FINISHED", ""
    return "FAILED", f"{type(error).__name__}: {error}"


class StageRun:
    """The run of one stage. Its methods return at once or soon, and raise nothing of MLflow's or the network's."""

    def __init__(self, stage: str, run_file: Path | None = None) -> None:
        self.stage, self._run_file = stage, run_file
        self._tracked = os.environ.get("GPT2CORE_TRACKING", "").lower() not in ("off", "0", "false", "no")
        self._client: MlflowClient
        self._run_id = self._parent_id = ""
        self._rows: list[MetricRow] = []
        self._last_step = 0
        self._mutex = threading.Lock()
        self._ending = threading.Event()
        self._flusher: threading.Thread | None = None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Note metrics of a step (None: the last step seen). Sent in batches by a thread: microseconds for the caller.

        Nested mappings are flattened with dots; whatever is no number is passed over.
        """
        if not self._tracked:
            return
        now_ms = time.time_ns() // 1_000_000
        with self._mutex:
            if step is not None:
                self._last_step = max(self._last_step, step)
            at_step = self._last_step if step is None else step
            self._rows += [MetricRow(key, value, now_ms, at_step) for key, value in numbers(metrics).items()]
        if self._flusher is None:
            self._flusher = threading.Thread(target=self._flush_regularly, name="mlflow-flush", daemon=True)
            self._flusher.start()

    def log_artifact(self, path: str | os.PathLike[str], folder: str | None = None) -> None:
        """Copy a file to the run, into `folder` there."""
        self._attempt(lambda: self._client.log_artifact(self._run_id, os.fspath(path), folder))

    def log_text(self, text: str, name: str) -> None:
        """Store a text as the artifact `name`."""
        self._attempt(lambda: self._client.log_text(self._run_id, text, name))

    def log_figure(self, plot: Callable[..., None], *arguments: Any) -> None:
        """Draw `plot(*arguments)` of `gpt2core.track.plots`, whose last argument is the file, and copy it to plots/."""
        plot(*arguments)
        self.log_artifact(arguments[-1], "plots")

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        self._attempt(lambda: self._send_tags(self._run_id, tags))

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """The stage's results: on its own run, and as `<stage>.<metric>` on the parent, to compare pipeline runs."""
        self.log_metrics(metrics)  # at the last step, so that they are the latest values of their curves
        self._log_on_parent(metrics)

    def _start(self, params: config.Params, sections: tuple[str, ...] | None) -> None:
        self._attempt(lambda: self._open(params.model_dump(), sections))

    def _open(self, params: dict[str, Any], sections: tuple[str, ...] | None) -> None:
        """Find or create the parent, create the child, log params and tags of both."""
        root = config.project_root().absolute()
        prepare_mlflow()
        from mlflow import MlflowClient

        # It writes tracebacks of errors that it raises as well.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        revision = _git_revision()
        pipeline = _pipeline(self.stage, revision)
        tags = _common_tags(revision)
        with files.lock(root / ".locks" / "mlflow.lock", LOCK_TIMEOUT_S):
            self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or _local_store(root))
            experiment_id = _experiment(self._client, root)
            earlier = self._earlier_run()
            known = self._client.search_runs(
                [experiment_id], f"tags.`{PIPELINE_TAG}` = '{pipeline.key}'", max_results=1
            )
            if known:
                self._parent_id = known[0].info.run_id
                self._client.update_run(self._parent_id, status="RUNNING")
            elif earlier:  # the pipeline run that was stopped goes on in this one
                self._parent_id = earlier.data.tags["mlflow.parentRunId"]
                self._client.update_run(self._parent_id, status="RUNNING", name=pipeline.name)
                self._send_tags(self._parent_id, {**tags, PIPELINE_TAG: pipeline.key})
            else:
                parent = self._client.create_run(
                    experiment_id, run_name=pipeline.name, tags={**tags, PIPELINE_TAG: pipeline.key}
                )
                self._parent_id = parent.info.run_id
                self._send_params(self._parent_id, params)
        tags |= {"stage": self.stage, "mlflow.parentRunId": self._parent_id}
        if earlier:
            self._run_id = earlier.info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            self._send_tags(self._run_id, tags)
            if "error" in earlier.data.tags:
                self._client.delete_tag(self._run_id, "error")
        else:
            self._run_id = self._client.create_run(experiment_id, run_name=self.stage, tags=tags).info.run_id
        if self._run_file:
            files.write_json(self._run_file, {"run_id": self._run_id})
        wanted = params if sections is None else {name: params[name] for name in ("seed", *sections)}
        self._send_params(self._run_id, wanted)

    def _earlier_run(self) -> Run | None:
        """The run that the run file names, unless it or its parent is not in this store (any more)."""
        from mlflow.exceptions import MlflowException

        if not (self._run_file and self._run_file.exists()):
            return None
        try:
            run = self._client.get_run(files.read_json(self._run_file)["run_id"])
            parent = self._client.get_run(run.data.tags["mlflow.parentRunId"])
        except (UserError, KeyError, TypeError, MlflowException):
            return None
        return run if run.info.lifecycle_stage == parent.info.lifecycle_stage == "active" else None

    def _end(self, status: str, reason: str, duration_s: float) -> None:
        self._ending.set()
        if self._flusher is not None:
            self._flusher.join(END_TIMEOUT_S)
            if self._flusher.is_alive():
                self._turn_off(TimeoutError(f"the server took more than {END_TIMEOUT_S:g} s"))
        self._log_on_parent({"duration_s": duration_s})
        self._attempt(lambda: self._close(status, reason, duration_s))

    def _close(self, status: str, reason: str, duration_s: float) -> None:
        self._rows.append(MetricRow("duration_s", duration_s, time.time_ns() // 1_000_000, self._last_step))
        self._flush()
        if reason:
            self._send_tags(self._run_id, {"error": reason[:1000]})
        self._client.set_terminated(self._run_id, status)
        self._client.set_terminated(self._parent_id, status)
        if self._run_file and status == "FINISHED":
            self._run_file.unlink(missing_ok=True)

    def _log_on_parent(self, metrics: Mapping[str, Any]) -> None:
        now_ms = time.time_ns() // 1_000_000
        prefix = re.sub(r"[^\w./ -]", "_", self.stage)  # of `convert@124M`, MLflow takes the @ in no metric's name
        rows = [MetricRow(f"{prefix}.{key}", value, now_ms, 0) for key, value in numbers(metrics).items()]
        self._attempt(lambda: self._send_metrics(self._parent_id, rows))

    def _flush_regularly(self) -> None:
        while self._tracked and not self._ending.wait(FLUSH_INTERVAL_S):
            self._attempt(self._flush)

    def _flush(self) -> None:
        with self._mutex:
            rows, self._rows = self._rows, []
        self._send_metrics(self._run_id, rows)

    def _send_metrics(self, run_id: str, rows: Iterable[MetricRow]) -> None:
        from mlflow.entities import Metric

        for batch in _batches(rows, MAX_BATCH_METRICS):
            self._client.log_batch(run_id, metrics=[Metric(*row) for row in batch])

    def _send_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        for batch in _batches(flatten(params).items(), MAX_BATCH_PARAMS):
            self._client.log_batch(run_id, params=[Param(key, str(value)) for key, value in batch])

    def _send_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Run `action` if tracking is on; the first error turns it off for the rest of the stage."""
        if not self._tracked:
            return
        try:
            action()
        except Exception as error:  # of MLflow, SQLAlchemy, requests, the disk, …: none may stop the training
            self._turn_off(error)

    def _turn_off(self, error: Exception) -> None:
        with self._mutex:
            was_tracked, self._tracked = self._tracked, False
            self._rows.clear()
        if was_tracked:
            _warn(f"stage {self.stage} goes on without MLflow tracking", error)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots.

    >>> flatten({"seed": 1, "pretrain": {"lr": 0.1}})
    {'seed': 1, 'pretrain.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among (nested) metrics, flattened.

    >>> numbers({"loss": 1, "by_seed": {"7": 0.5}, "judge": "chrf", "n": None})
    {'loss': 1.0, 'by_seed.7': 0.5}
    """
    flat = flatten(metrics)
    return {k: float(v) for k, v in flat.items() if isinstance(v, Real) and not isinstance(v, bool)}


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = list(items)
    return (items[start : start + size] for start in range(0, len(items), size))


def _warn(what: str, error: Exception) -> None:
    """One line on stderr; the first line of the error, without credentials of a URL in it."""
    first_line = (str(error).splitlines() or [""])[0][:300]
    first_line = re.sub(r"//[^/@\s]+@", "//", first_line)
    sys.stderr.write(f"warning: {what} ({type(error).__name__}: {first_line})\n")


def prepare_mlflow() -> None:
    """Settings that MLflow reads when it is imported, or that it would inherit."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.pop("MLFLOW_RUN_ID", None)  # an inherited run would win over ours
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every migration of a new database


def _local_store(root: Path) -> str:
    """The URI of the project's own database, created where it is missing. The caller holds the lock.

    MLflow builds the tables in some hundred commits, and a process that is killed there must leave no half of them
    behind. So they are built in another file, which is then renamed; that also spares waiting for the disk at each
    commit, 2 s instead of 7.
    """
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def do_not_wait(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    database = root / "mlflow.db"
    if not database.exists():
        event.listen(Engine, "connect", do_not_wait)
        try:
            with files.atomic_path(database) as temporary:
                MlflowClient(tracking_uri=f"sqlite:///{temporary}").search_experiments(max_results=1)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
        finally:
            event.remove(Engine, "connect", do_not_wait)
    return f"sqlite:///{database}"


def _experiment(client: MlflowClient, root: Path) -> str:
    """The experiment's id. A server has an artifact root of its own; a database gets one that is not relative to the
    working directory, since that of `dvc exp run --temp` is deleted."""
    if (experiment := client.get_experiment_by_name(EXPERIMENT)) is not None:
        return experiment.experiment_id
    has_server = client.tracking_uri.startswith(("http://", "https://", "databricks"))
    location = None if has_server else (root / "mlartifacts").as_uri()
    return client.create_experiment(EXPERIMENT, artifact_location=location)


def _pipeline(stage: str, revision: str | None) -> Pipeline:
    """The pipeline run that this process belongs to: a DVC experiment, else the `dvc repro` around it, else itself."""
    at_revision = f" {revision[:7]}" if revision else ""
    if experiment := os.environ.get("DVC_EXP_NAME"):
        baseline = os.environ.get("DVC_EXP_BASELINE_REV", "")
        return Pipeline(re.sub(r"[^\w.:/+-]", "_", f"experiment:{experiment}:{baseline}"), experiment)
    if (process := _outermost_dvc()) is not None:
        return Pipeline(f"process:{process.pid}:{process.create_time():.2f}", f"repro{at_revision}")
    return Pipeline(f"by-hand:{uuid.uuid4().hex}", f"{stage}{at_revision}")


def _outermost_dvc() -> psutil.Process | None:
    import psutil

    outermost = None
    for process in psutil.Process().parents():  # from the nearest on
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to somebody else
            if _is_dvc(process.cmdline()):
                outermost = process
    return outermost


def _is_dvc(command: list[str]) -> bool:
    """Whether a command line is DVC's: `dvc …`, `python /path/to/dvc …` or `python -m dvc …`."""
    names = [PurePath(word).name.lower().removesuffix(".exe") for word in command]
    if not names or names[0] == "dvc":
        return bool(names)
    script = next((name for name in names[1:] if not name.startswith("-")), "")
    return names[0].startswith("python") and script == "dvc"


def _common_tags(revision: str | None) -> dict[str, str]:
    """What parent and child are both tagged with: where the code came from, and what decides the last bits."""
    tags = {
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME"),
        "dvc_exp_baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "git_revision": revision,
        "mlflow.source.git.commit": revision and revision.removesuffix("-dirty"),  # an experiment's baseline
    }
    return {key: value for key, value in (tags | runtime.environment()).items() if value}


def _git_revision() -> str | None:
    """The workspace's commit, with `-dirty` if a tracked file differs from it; None outside Git.

    dvc.lock and metrics/ do not count: every run writes them.
    """
    if (revision := _git("rev-parse", "HEAD")) is None:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!metrics")
    return f"{revision}-dirty" if changed else revision


def _git(*arguments: str) -> str | None:
    """What a git command says of the working directory; None if it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
