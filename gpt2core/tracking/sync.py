"""Complete MLflow from Git, dvc.lock, and metrics/: for a commit, an experiment, or the workspace.

An existing run is completed; results that no run shows get one. What is there and correct is left alone, so a second
sync does nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt2core.config.mlflow import Mlflow
from gpt2core.errors import UserError, first_line
from gpt2core.params import Params
from gpt2core.params.load import missing
from gpt2core.tracking import pending, revisions, store
from gpt2core.tracking.commit_states import CommitStates
from gpt2core.tracking.find_runs import find_runs
from gpt2core.tracking.models import KIND_OF_STAGE, log_model, register_model, registered_versions
from gpt2core.tracking.pending import Note
from gpt2core.tracking.revisions import Revision
from gpt2core.tracking.state import State, file_stem, folder_md5
from gpt2core.tracking.writer import PARENT_TAG, PIPELINE_TAG, RESULTS_TAG, Point, RunWriter, Writer


@dataclass
class Synced:
    """What was done for a revision; nothing, if MLflow had all of it."""

    name: str
    run_id: str
    done: list[str] = field(default_factory=list)

    def add(self, *changes: tuple[int, str]) -> None:
        """Add the changes with a count, as `3 metrics`."""
        self.done += [f"{count} {what}" for count, what in changes if count]


def sync(root: Path, names: Iterable[str] = ()) -> list[Synced]:
    """Complete MLflow for experiments or Git revisions; without names, for the workspace, HEAD, and every experiment.

    Without names, experiments that an earlier call has completed in this store are left out.

    Raises:
        UserError: a name is neither, or has no results; the store does not answer.
    """
    names = list(names)
    chosen = revisions.select(root, names)
    notes = pending.read(root)
    try:
        writer = Writer(*store.open_store(root))
        states = CommitStates(root)
        complete = {} if names else states.synced(writer.identity)
        synced = []
        with store.lock(root):
            for revision in chosen:
                if revision.key and (run_id := complete.get(revision.revision)):
                    synced.append(Synced(revision.name, run_id))
                    continue
                synced.append(_sync(writer, root, revision, notes))
                if revision.key:
                    states.note_synced(writer.identity, revision.revision, synced[-1].run_id)
            for revision, each in zip(chosen, synced, strict=True):  # a model may belong to an experiment's run
                each.done += _add_models(writer, root, revision.state) if revision.is_workspace else []
        return synced
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"MLflow's store cannot be written ({reason}); see: gpt2core doctor") from None


def _sync(writer: Writer, root: Path, revision: Revision, notes: list[Note]) -> Synced:
    """Find or create the parent run of a revision, and complete it and its children."""
    fingerprint = revision.state.fingerprint
    note = next((note for note in notes if note.results == fingerprint), None)
    key = revision.key or (note.pipeline if note else "")
    parent = writer.find(PIPELINE_TAG, key) if key else None
    if parent is None and not revision.key:
        parent = writer.find(RESULTS_TAG, fingerprint)
    is_new = parent is None
    if parent is None:
        key = key or f"results:{fingerprint}"
        parent = writer.create(note.name if note else revision.name, {PIPELINE_TAG: key}, revision.at_ms)
    key = parent.tags.get(PIPELINE_TAG, key)
    note = next((other for other in notes if other.pipeline == key), None)

    synced = Synced(revision.name, parent.run_id, ["a run of its own"] if is_new else [])
    _complete_parent(parent, revision, synced)
    ran = set(note.stages if note else ()) | set(revision.ran or ())
    if revision.ran is None and is_new and note is None:
        ran = set(revision.state.metrics)  # nobody knows which of them came from the cache
    _complete_children(writer, parent, is_new, revision, ran, synced)
    if not parent.is_finished and (is_new or note or revision.key):
        parent.end(at_ms=revision.at_ms)
        synced.done += [] if is_new else ["its end"]
    if note and note.results == fingerprint:
        pending.remove(root, note.pipeline)
    return synced


def _complete_parent(parent: RunWriter, revision: Revision, synced: Synced) -> None:
    tags = {"git_revision": revision.revision}
    if revision.key:
        tags |= {"dvc_exp_name": revision.name, "dvc_exp_baseline": revision.baseline}
    missing = {key: value for key, value in tags.items() if key not in parent.tags}
    with parent.in_one_request():
        params = parent.log_params(_resolved(revision.state.params))
        results = parent.log_results(revision.state.table, revision.at_ms)
        parent.set_tags(missing | {RESULTS_TAG: revision.state.fingerprint})
    synced.add((params, "params"), (results, "metrics"))


def _complete_children(
    writer: Writer, parent: RunWriter, is_new: bool, revision: Revision, ran: set[str], synced: Synced
) -> None:
    children = [] if is_new else writer.children(parent.run_id)
    newest = {child.tags.get("stage", ""): child for child in children}
    for stage, entry in revision.state.stages.items():
        child = newest.get(stage)
        if child is not None and child.run.info.status in ("FAILED", "KILLED"):
            child = None  # and ran again, untracked, if it is in `ran`
        if child is None and stage not in ran:
            continue
        if is_new_child := child is None:
            tags = {PARENT_TAG: parent.run_id, "stage": stage}
            child = writer.create(stage, tags, revision.at_ms)
            synced.done.append(f"the stage {stage}")
        elif not child.is_finished and stage not in ran:
            continue  # it may be running
        curve = [] if child.is_finished else list(_curve(child, stage, revision))
        last_step = max((point.step for point in curve), default=0)
        with child.in_one_request():
            params = child.log_params(entry.get("params", {}).get("params.yaml", {}))
            results = child.log_results(revision.state.metrics.get(stage, {}), revision.at_ms, last_step)
            child.log_missing_steps(curve)  # a result takes the place of its curve's last value
        of = "" if is_new_child else f" of {stage}"
        synced.add((params, f"params{of}"), (results, f"metrics{of}"))
        if not child.is_finished:
            child.end(at_ms=revision.at_ms)
            synced.done += [] if is_new_child else [f"the end of {stage}"]


def _curve(child: RunWriter, stage: str, revision: Revision) -> Iterator[Point]:
    """Yield the points of the stage's curve, of the first seed: one curve per run.

    With a column `epoch`, these are only of metrics of which the run has no point: a running stage counts steps, so its
    points and these do not belong to one curve.
    """
    content = revision.read(f"metrics/plots/{file_stem(stage)}.csv")
    rows = list(csv.DictReader(io.StringIO(content.decode()))) if content else []
    column = next((name for name in ("step", "epoch") if rows and name in rows[0]), None)
    if column is None:
        return
    keys = set(rows[0]) - {column, "seed"} - (set(child.run.data.metrics) if column == "epoch" else set())
    for row in rows:
        if row.get("seed") == rows[0].get("seed"):
            step = int(float(row[column]))
            yield from (Point(key, float(row[key]), revision.at_ms, step) for key in sorted(keys) if row[key])


def _resolved(params: dict[str, Any]) -> dict[str, Any]:
    """Return params as a stage logs them; those of an older commit, which lack keys or have old names, unchanged."""
    if missing(params):
        return params
    try:
        return Params.model_validate(params).model_dump()
    except ValidationError:
        return params


def _add_models(writer: Writer, root: Path, state: State) -> list[str]:
    """Log and register the workspace's models, as far as `mlflow` of the params says. Return what was done.

    A model goes to the newest run that finished with the stage's present metrics, if the directory has the bytes of
    dvc.lock.

    Raises:
        Exception: any error of MLflow, its store, or the disk.
    """
    try:
        section = Mlflow.model_validate(state.params.get("mlflow"))
    except ValidationError:  # of an older version
        return []
    prefix = section.registry_name()
    stages = [stage for stage in KIND_OF_STAGE if stage in state.metrics and section.log_models]
    done = []
    for maker in find_runs(root, stages, {file_stem(stage): state.metrics[stage] for stage in stages}):
        kind = KIND_OF_STAGE[maker.stage]
        folder = Path("models") / kind
        run = writer.get(maker.run_id)
        ids = [output.model_id for output in (run.run.outputs.model_outputs if run.run.outputs else ())]
        models = [model for model in map(run.client.get_logged_model, ids) if str(model.status) == "READY"]
        outs = {out["path"]: out.get("md5") for out in state.stages[maker.stage].get("outs", [])}
        if not models:
            if folder_md5(root / folder) == outs.get(folder.as_posix()):
                log_model(run, kind, root / folder, state.metrics[maker.stage], prefix)
                done.append(f"the model of {maker.stage}")
        elif prefix:
            name = f"{prefix}-{kind}"
            if not any(version["name"] == name for model in models for version in registered_versions(model)):
                register_model(run.client, models[-1], name, maker.run_id)
                done.append(f"{name} in the registry")
    return done
