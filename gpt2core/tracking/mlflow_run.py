"""One MLflow run for a pipeline run, and one nested in it for each stage that ran.

DVC starts each stage as a process of its own and passes it no MLflow run. So the stages of one pipeline run find each
other by a tag on the parent run; the first one creates it, under a lock between processes.

    with track_stage("pretrain", params, sections=("data", "pretrain")) as run:
        run.log_metrics({"train_loss": 3.2}, step=10)
        run.finish({"val_loss": 3.1})

Tracking never stops a stage: the first error of MLflow or of the network becomes one warning, and the stage continues
untracked; `sync.py` completes the run. `GPT2CORE_TRACKING=off` disables tracking; `MLFLOW_TRACKING_URI` names a server.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2core import config, files
from gpt2core.errors import UserError, first_line
from gpt2core.log import logger, shown
from gpt2core.params import Params
from gpt2core.tracking import pending, state, store
from gpt2core.tracking.flatten import flatten, numbers
from gpt2core.tracking.pipeline_run import Pipeline, common_tags, current_pipeline, git_revision
from gpt2core.tracking.plots.stages import stage_figures
from gpt2core.tracking.usage import usage
from gpt2core.tracking.writer import PARENT_TAG, PIPELINE_TAG, RESULTS_TAG, SYSTEM, Point, RunWriter, Writer

DESCRIPTION_TAG, MAX_TAG_CHARS = "mlflow.note.content", 8000  # MLflow's own

FLUSH_INTERVAL_S = 5.0  # a request costs MLflow about 20 ms, with one metric or a hundred
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

    The child ends FINISHED, FAILED (an exception) or KILLED (Ctrl-C), and its parent gets the status of the stage that
    ended last: DVC runs the stages of a pipeline one after the other and stops at the first that fails.

    Args:
        stage: the stage's name in dvc.yaml.
        params: all params; the parent run gets them all.
        sections: the sections and single params (`pretrain.base`) that the stage reads. The child gets these and the
            seed; None for all.
        inputs: outputs of other stages that it reads; their hashes become tags, and they are shown as datasets.
        run_file: where a stage that can be resumed stores its run's id until it is finished. If it has an id, that run
            is continued.
    """
    run = StageRun(stage, params, run_file)
    start_s = time.monotonic()
    run._attempt(lambda: run._open(params.model_dump(), sections))
    run._attempt(lambda: run._run.log_inputs(state.input_hashes(inputs)))
    status, reason = "FINISHED", ""
    try:
        yield run
    except BaseException as error:
        status, reason = _outcome(error)
        raise
    finally:
        run._end(status, reason, time.monotonic() - start_s)


def _body(path: Path) -> str:
    """Return the text of a Markdown file without metadata, at most what MLflow takes as a tag."""
    text = files.read_text(path)
    body = text.split("\n---\n", 1)[-1] if text.startswith("---\n") else text
    return body.strip()[:MAX_TAG_CHARS]


def _outcome(error: BaseException) -> tuple[str, str]:
    """Return the MLflow status that an exception means, and a line that describes it."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", "interrupted"
    if isinstance(error, SystemExit) and not error.code:
        return "FINISHED", ""
    return "FAILED", shown(f"{type(error).__name__}: {error}")


class StageRun:
    """The run of one stage. Its methods return soon, and raise no error of MLflow or of the network."""

    def __init__(self, stage: str, params: Params, run_file: Path | None = None) -> None:
        self.stage, self._params, self._run_file = stage, params, run_file
        self._is_tracked = self._is_enabled = store.is_enabled()
        self._pipeline: Pipeline | None = None
        self._writer: Writer
        self._run: RunWriter
        self._parent_id = ""
        self._points: list[Point] = []  # not sent yet
        self._last_step = 0
        self._mutex = threading.Lock()  # for the two above
        self._sending = threading.Lock()
        self._ending = threading.Event()
        self._flusher: threading.Thread | None = None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics of a step (None: the last step so far). A thread sends them: microseconds for the caller.

        Nested mappings are flattened with dots; values that are not numbers are ignored.
        """
        if not self._is_tracked:
            return
        now_ms = _now_ms()
        with self._mutex:
            if step is not None:
                self._last_step = max(self._last_step, step)
            at_step = self._last_step if step is None else step
            self._points += [Point(key, value, now_ms, at_step) for key, value in numbers(metrics).items()]
        if self._flusher is None:
            self._flusher = threading.Thread(target=self._flush_regularly, name="mlflow-flush", daemon=True)
            self._flusher.start()

    def log_artifact(self, path: str | os.PathLike[str], folder: str | None = None) -> None:
        """Copy a file to the run, into `folder` there."""
        self._attempt(lambda: self._run.client.log_artifact(self._run.run_id, os.fspath(path), folder))

    def log_figure(self, name: str, plot: Callable[..., None], *arguments: Any) -> None:
        """Draw a figure with `plot(*arguments, path)`, and log it as the artifact `plots/<name>.svg`.

        A run that is not tracked does not call `plot`. An error in it becomes a warning; the stage and its tracking
        continue.
        """
        if not self._is_tracked:
            return
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"{name}.svg")
                plot(*arguments, path)
                self.log_artifact(path, "plots")
        except Exception as error:  # a figure is never a reason to lose a training
            _warn(f"stage {self.stage}: plots/{name}.svg was not drawn", error)

    def describe(self, path: str | os.PathLike[str]) -> None:
        """Show a Markdown file, such as a model card, as the run's description, without its metadata."""
        self._attempt(lambda: self._run.set_tags({DESCRIPTION_TAG: _body(Path(path))}))

    def log_model(self, kind: str, folder: str | os.PathLike[str], metrics: Mapping[str, Any]) -> None:
        """Log a model directory as an MLflow model, `classifier` or `instruct`, if `mlflow` of the params says so."""
        self._attempt(lambda: self._log_model(kind, Path(folder), metrics))

    def _log_model(self, kind: str, folder: Path, metrics: Mapping[str, Any]) -> None:
        section = self._params.mlflow
        if section.log_models:
            from gpt2core.tracking.models import log_model

            self._flush(up_to_now=True)  # if logging the model fails, the metrics are there
            log_model(self._run, kind, folder, metrics, section.registry_name())

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Log the stage's results and the figures of its files, which are written before.

        The parent run gets the results as `<stage>.<metric>`, to compare pipeline runs.
        """
        results = numbers(metrics)
        with self._mutex:  # a result takes the place of its curve's value at the last step
            self._points = [p for p in self._points if p.step != self._last_step or p.key not in results]
        self.log_metrics(results)
        of_stage = {state.metric_name(self.stage, key): value for key, value in results.items()}
        self._attempt(lambda: self._writer.get(self._parent_id).log_results(of_stage, _now_ms()))
        if not self._is_tracked:
            return
        try:
            for figure in stage_figures(self.stage, metrics):
                self.log_figure(figure.name, figure.draw)
        except Exception as error:
            _warn(f"stage {self.stage}: not all of its figures were drawn", error)

    def _open(self, params: dict[str, Any], sections: tuple[str, ...] | None) -> None:
        """Find or create the parent, create or resume the child, log params and tags of both."""
        root = config.project_root().absolute()
        revision = git_revision()
        self._pipeline = current_pipeline(self.stage, revision)
        tags = common_tags(revision)
        self._writer = Writer(*store.open_store(root))
        with store.lock(root):
            earlier = self._earlier_run()
            self._parent_id = self._open_parent(self._pipeline, earlier, tags, params)
        tags |= {"stage": self.stage, PARENT_TAG: self._parent_id}
        if earlier:
            self._run = earlier
            self._run.resume(tags)
        else:
            self._run = self._writer.create(self.stage, tags)
        if self._run_file:
            files.write_json(self._run_file, {"run_id": self._run.run_id})
        self._run.log_params(params if sections is None else _chosen(params, ("seed", *sections)))

    def _open_parent(
        self, pipeline: Pipeline, earlier: RunWriter | None, tags: dict[str, str], params: dict[str, Any]
    ) -> str:
        """Return the id of the pipeline's run. A pipeline run that was stopped continues in this one."""
        if parent := self._writer.find(PIPELINE_TAG, pipeline.key):
            parent.resume({})
        elif earlier:
            parent = self._writer.get(earlier.tags[PARENT_TAG])
            parent.resume({**tags, PIPELINE_TAG: pipeline.key}, pipeline.name)
        else:
            parent = self._writer.create(pipeline.name, {**tags, PIPELINE_TAG: pipeline.key})
            parent.log_params(params)
        return parent.run_id

    def _earlier_run(self) -> RunWriter | None:
        """Return the run that the run file names, unless it or its parent is not in this store (any more)."""
        from mlflow.exceptions import MlflowException

        if not (self._run_file and self._run_file.exists()):
            return None
        try:
            run = self._writer.get(files.read_json(self._run_file)["run_id"])
            parent = self._writer.get(run.tags[PARENT_TAG])
        except (UserError, KeyError, TypeError, MlflowException):
            return None
        return run if {each.run.info.lifecycle_stage for each in (run, parent)} == {"active"} else None

    def _end(self, status: str, reason: str, duration_s: float) -> None:
        self._ending.set()
        if self._flusher is not None:
            self._flusher.join(END_TIMEOUT_S)
            if self._flusher.is_alive():
                self._turn_off(TimeoutError(f"the server took more than {END_TIMEOUT_S:g} s"))
        self._attempt(lambda: self._close(status, reason, duration_s))
        if self._is_enabled and not self._is_tracked and status == "FINISHED":
            self._note_pending()

    def _close(self, status: str, reason: str, duration_s: float) -> None:
        now_ms, parent = _now_ms(), self._writer.get(self._parent_id)
        self._points.append(Point("duration_s", duration_s, now_ms, self._last_step))
        self._flush(up_to_now=True)
        parent.log_results({state.metric_name(self.stage, "duration_s"): duration_s}, now_ms)
        if reason:
            self._run.set_tags({"error": reason[:1000]})
        if status == "FINISHED" and (now := self._state()):
            parent.log_results(now.table, now_ms)  # those of stages that came from the cache, too
            parent.set_tags({RESULTS_TAG: now.fingerprint})
        self._run.end(status)
        parent.end(status)
        if self._run_file and status == "FINISHED":
            self._run_file.unlink(missing_ok=True)

    def _state(self) -> state.State | None:
        return state.read_state(state.of_directory(Path.cwd()), self.stage)

    def _note_pending(self) -> None:
        """Leave a note for `gpt2core sync-mlflow`."""
        try:
            pipeline = self._pipeline or current_pipeline(self.stage, git_revision())
            if now := self._state():
                root = config.project_root().absolute()
                pending.add(root, pipeline.key, pipeline.name, now.fingerprint, self.stage)
        except Exception as error:  # as with tracking itself, nothing here may stop a stage
            _warn(f"stage {self.stage} is not noted for sync-mlflow", error)

    def _flush_regularly(self) -> None:
        for sample in itertools.count(self._run.last_step(system=True) + 1):
            if not self._is_tracked or self._ending.wait(FLUSH_INTERVAL_S):
                return
            now_ms = _now_ms()
            with self._mutex:
                self._points += [Point(key, value, now_ms, sample) for key, value in usage().items()]
            self._attempt(self._flush)

    def _flush(self, up_to_now: bool = False) -> None:
        """Send the points, by default without those of the last step: results may take their place."""
        with self._sending:
            with self._mutex:
                points, last_step = self._points, -1 if up_to_now else self._last_step
                self._points = [p for p in points if p.step == last_step and not p.key.startswith(SYSTEM)]
                waiting = set(self._points)
            self._run.log_points(point for point in points if point not in waiting)

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Run `action` if tracking is on; the first error disables tracking for the rest of the stage."""
        if not self._is_tracked:
            return
        try:
            action()
        except Exception as error:  # of MLflow, SQLAlchemy, requests, the disk, …: none may stop the training
            self._turn_off(error)

    def _is_warned(self) -> bool:
        """Return whether an earlier stage of this pipeline run has already continued without MLflow, and said so."""
        if self._pipeline is None:
            return False
        with contextlib.suppress(Exception):
            notes = pending.read(config.project_root().absolute())
            return any(note.pipeline == self._pipeline.key and note.stages != [self.stage] for note in notes)
        return False

    def _turn_off(self, error: Exception) -> None:
        with self._mutex:
            was_tracked, self._is_tracked = self._is_tracked, False
            self._points.clear()
        if was_tracked and not self._is_warned():
            _warn(f"stage {self.stage} continues without MLflow; gpt2core sync-mlflow completes its run", error)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _warn(message: str, error: Exception) -> None:
    """Log one line with the first line of the error; a UserError says all that is needed."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    logger.warning(f"{message} ({kind}{first_line(error)})")


def _chosen(params: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return some sections, and single params by their dotted names, flattened."""
    flat = flatten(params)
    return {key: value for key, value in flat.items() if any(key == n or key.startswith(f"{n}.") for n in names)}
