"""One MLflow run for a pipeline run, and one nested in it for each stage that ran.

DVC starts each stage as a process of its own and tells it nothing of an MLflow run. So the stages of one pipeline run
find each other by a tag on the parent run; whoever comes first creates it, under a lock between processes.

    with track_stage("pretrain", params, sections=("data", "pretrain")) as run:
        run.log_metrics({"train_loss": 3.2}, step=10)
        run.finish({"val_loss": 3.1})

Tracking never stops a stage: the first error of MLflow or of the network becomes one warning, and the stage goes on
untracked; `sync.py` fills it in. `GPT2CORE_TRACKING=off` turns it off; `MLFLOW_TRACKING_URI` sends it to a server.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core import config, files
from gpt2core.errors import UserError
from gpt2core.log import logger
from gpt2core.params import Params
from gpt2core.tracking import pending, state, store
from gpt2core.tracking.flatten import numbers
from gpt2core.tracking.inputs import input_hashes, log_datasets
from gpt2core.tracking.pipeline_run import (
    PIPELINE_TAG,
    RESULTS_TAG,
    Pipeline,
    common_tags,
    current_pipeline,
    git_revision,
)
from gpt2core.tracking.store import MetricRow
from gpt2core.tracking.usage import usage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FLUSH_INTERVAL_S = 5.0  # a call costs MLflow some 20 ms, whether it brings one metric or a hundred
END_TIMEOUT_S = 30.0


@contextlib.contextmanager
def track_stage(
    stage: str,
    params: Params,
    *,
    sections: tuple[str, ...] | None = None,
    inputs: Iterable[str | Path] = (),
    run_file: Path | None = None,
) -> Iterator[StageRun]:
    """Track a stage as a child of its pipeline's run.

    The child ends FINISHED, FAILED (an exception) or KILLED (Ctrl-C), and its parent takes over the status of the
    stage that ended last: DVC runs the stages of a pipeline one after the other and stops at the first that fails.

    Args:
        stage: the stage's name in dvc.yaml.
        params: all params; the parent run gets them all.
        sections: the sections that the stage reads. The child gets these and the seed; None for all.
        inputs: what it reads and other stages made; their hashes become tags, and they are shown as datasets.
        run_file: where a stage that can be resumed notes its run until it is through; one that finds a run there
            continues it.

    Raises:
        Nothing of its own, whatever happens to MLflow; exceptions of the stage pass through.
    """
    run = StageRun(stage, params, run_file)
    start_s = time.monotonic()
    run._start(sections, inputs)
    status, reason = "FINISHED", ""
    try:
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

    def __init__(self, stage: str, params: Params, run_file: Path | None = None) -> None:
        self.stage, self._params, self._run_file = stage, params, run_file
        self._tracked = self._wanted = store.is_wanted()
        self._client: MlflowClient
        self._pipeline: Pipeline | None = None
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

    def log_figure(self, name: str, plot: Callable[..., None], *arguments: Any) -> None:
        """Draw a figure and log it as the artifact `plots/<name>.svg`. A run that is not tracked draws nothing.

        An error while drawing becomes a warning; the stage and its tracking continue.

        Args:
            name: the artifact's name, without the suffix.
            plot: called as `plot(*arguments, path)`; writes the figure to `path`, as `gpt2core.tracking.plots` does.
                Compute here what only the figure needs, so that a run that is not tracked does not compute it.
            arguments: passed to `plot`.
        """
        if not self._tracked:
            return
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"{name}.svg")
                plot(*arguments, path)
                self.log_artifact(path, "plots")
        except Exception as error:  # a picture is never a reason to lose a training
            _warn(f"stage {self.stage}: plots/{name}.svg was not drawn", error)

    def log_model(self, kind: str, folder: str | os.PathLike[str], metrics: Mapping[str, Any]) -> None:
        """Log a model directory as an MLflow model, `classifier` or `instruct`, as far as `mlflow` of the params says.

        metrics: the stage's results, shown on the model's page too.
        """
        self._attempt(lambda: self._log_model(kind, Path(folder), metrics))

    def _log_model(self, kind: str, folder: Path, metrics: Mapping[str, Any]) -> None:
        section = self._params.mlflow
        if section.log_models:
            from gpt2core.tracking.models import log_model

            self._flush()  # should it fail, the metrics are there
            log_model(self._client, self._client.get_run(self._run_id), kind, folder, metrics, section.registry_name())

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run."""
        self._attempt(lambda: store.send_tags(self._client, self._run_id, tags))

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """The stage's results: on its own run, and as `<stage>.<metric>` on the parent, to compare pipeline runs."""
        self.log_metrics(metrics)  # at the last step, so that they are the latest values of their curves
        self._log_on_parent(metrics)

    def _start(self, sections: tuple[str, ...] | None, inputs: Iterable[str | Path]) -> None:
        self._attempt(lambda: self._open(self._params.model_dump(), sections))
        self._attempt(lambda: self._tell_inputs(input_hashes(inputs)))

    def _open(self, params: dict[str, Any], sections: tuple[str, ...] | None) -> None:
        """Find or create the parent, create the child, log params and tags of both."""
        root = config.project_root().absolute()
        revision = git_revision()
        pipeline = self._pipeline = current_pipeline(self.stage, revision)
        tags = common_tags(revision)
        store.prepare_mlflow()
        self._client, experiment_id = store.open_store(root)
        with store.lock(root):
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
                store.send_tags(self._client, self._parent_id, {**tags, PIPELINE_TAG: pipeline.key})
            else:
                parent = self._client.create_run(
                    experiment_id, run_name=pipeline.name, tags={**tags, PIPELINE_TAG: pipeline.key}
                )
                self._parent_id = parent.info.run_id
                store.send_params(self._client, self._parent_id, params)
        tags |= {"stage": self.stage, "mlflow.parentRunId": self._parent_id}
        if earlier:
            self._run_id = earlier.info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            store.send_tags(self._client, self._run_id, tags)
            if "error" in earlier.data.tags:
                self._client.delete_tag(self._run_id, "error")
        else:
            self._run_id = self._client.create_run(experiment_id, run_name=self.stage, tags=tags).info.run_id
        if self._run_file:
            files.write_json(self._run_file, {"run_id": self._run_id})
        wanted = params if sections is None else {name: params[name] for name in ("seed", *sections)}
        store.send_params(self._client, self._run_id, wanted)

    def _tell_inputs(self, hashes: Mapping[str, str]) -> None:
        store.send_tags(self._client, self._run_id, {f"input.{path}": md5 for path, md5 in hashes.items()})
        log_datasets(self._client, self._run_id, hashes)

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
        if self._wanted and not self._tracked and status == "FINISHED":
            self._note_untracked()

    def _close(self, status: str, reason: str, duration_s: float) -> None:
        self._rows.append(MetricRow("duration_s", duration_s, time.time_ns() // 1_000_000, self._last_step))
        self._flush()
        if reason:
            store.send_tags(self._client, self._run_id, {"error": reason[:1000]})
        if status == "FINISHED":
            self._log_state()
        self._client.set_terminated(self._run_id, status)
        self._client.set_terminated(self._parent_id, status)
        if self._run_file and status == "FINISHED":
            self._run_file.unlink(missing_ok=True)

    def _log_state(self) -> None:
        """On the parent, the results of all stages, so that those of stages that came from the cache are there, too."""
        now = state.read_state(state.of_directory(Path.cwd()), self.stage)
        if now is not None:
            now_ms = time.time_ns() // 1_000_000
            rows = [MetricRow(key, value, now_ms, 0) for key, value in now.table.items()]
            store.send_metrics(self._client, self._parent_id, rows)
            store.send_tags(self._client, self._parent_id, {RESULTS_TAG: now.fingerprint})

    def _note_untracked(self) -> None:
        """Leave word for `gpt2core sync-mlflow`."""
        try:
            now = state.read_state(state.of_directory(Path.cwd()), self.stage)
            pipeline = self._pipeline or current_pipeline(self.stage, git_revision())
            if now is not None:
                root = config.project_root().absolute()
                pending.add(root, pipeline.key, pipeline.name, now.fingerprint, self.stage)
        except Exception as error:  # as with tracking itself, nothing here may stop a stage
            _warn(f"stage {self.stage} is not noted for sync-mlflow", error)

    def _log_on_parent(self, metrics: Mapping[str, Any]) -> None:
        now_ms = time.time_ns() // 1_000_000
        prefix = state.prefix(self.stage)
        rows = [MetricRow(f"{prefix}.{key}", value, now_ms, 0) for key, value in numbers(metrics).items()]
        self._attempt(lambda: store.send_metrics(self._client, self._parent_id, rows))

    def _flush_regularly(self) -> None:
        for sample in itertools.count():
            if not self._tracked or self._ending.wait(FLUSH_INTERVAL_S):
                return
            now_ms = time.time_ns() // 1_000_000
            with self._mutex:
                self._rows += [MetricRow(key, value, now_ms, sample) for key, value in usage().items()]
            self._attempt(self._flush)

    def _flush(self) -> None:
        with self._mutex:
            rows, self._rows = self._rows, []
        store.send_metrics(self._client, self._run_id, rows)

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
            _warn(f"stage {self.stage} goes on without MLflow tracking; gpt2core sync-mlflow fills it in", error)


def _warn(what: str, error: Exception) -> None:
    """One line on stderr; the first line of the error, without credentials of a URL in it."""
    first_line = (str(error).splitlines() or [""])[0][:300]
    first_line = re.sub(r"//[^/@\s]+@", "//", first_line)
    logger.warning(f"{what} ({type(error).__name__}: {first_line})")
