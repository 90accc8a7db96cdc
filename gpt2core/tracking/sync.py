"""What MLflow lacks, filled in from Git, dvc.lock and metrics/: of a commit, of an experiment, or of the workspace.

A run that is there is completed; for results that no run shows, one is created. What is there and right is left alone,
so that a second time nothing is done.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gpt2core.errors import UserError
from gpt2core.params import Params
from gpt2core.params.load import missing
from gpt2core.tracking import pending, revisions, store
from gpt2core.tracking.flatten import flatten, numbers
from gpt2core.tracking.pending import Note
from gpt2core.tracking.pipeline_run import PIPELINE_TAG, RESULTS_TAG
from gpt2core.tracking.revisions import Revision
from gpt2core.tracking.store import MetricRow
from gpt2core.tracking.workspace_models import add_models

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STEP_COLUMNS = ("step", "epoch")  # of the curves in metrics/plots, the first that is there
CHILD_TAG = "mlflow.parentRunId"


@dataclass
class Synced:
    """What was done for a state; nothing, where MLflow had it all."""

    name: str
    run_id: str
    done: list[str] = field(default_factory=list)


def sync(root: Path, names: Iterable[str] = ()) -> list[Synced]:
    """Fill in.

    Args:
        root: the project.
        names: of experiments, or Git revisions; none: the workspace, HEAD, and every experiment.

    Raises:
        UserError: a name is neither, or has no results; the store does not answer.
    """
    wanted = [revisions.named(root, name) for name in names] or revisions.all_of(root)
    notes = pending.read(root)
    store.prepare_mlflow()
    try:
        client, experiment_id = store.open_store(root)
        with store.lock(root):
            shown = [_Parent(client, experiment_id, root, notes).show(target) for target in wanted]
            for target, synced in zip(wanted, shown, strict=True):
                synced.done += add_models(client, root, target.state) if target.is_here else []
        return shown
    except Exception as error:
        if isinstance(error, UserError):
            raise
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"MLflow's store cannot be written ({type(error).__name__}: {first_line}); see: gpt2core doctor"
        ) from None


class _Parent:
    """Finds or creates the parent run of a state, and completes it."""

    def __init__(self, client: MlflowClient, experiment_id: str, root: Path, notes: list[Note]) -> None:
        self.client, self.experiment_id, self.root, self.notes = client, experiment_id, root, notes

    def show(self, target: Revision) -> Synced:
        note = next((note for note in self.notes if note.results == target.state.fingerprint), None)
        key = target.key or (note.pipeline if note else "")
        parent = self._find(f"tags.`{PIPELINE_TAG}` = '{key}'") if key else None
        if parent is None and not target.key:
            parent = self._find(f"tags.`{RESULTS_TAG}` = '{target.state.fingerprint}'")
        is_new = parent is None
        if parent is None:
            parent = self._create(target, key or f"results:{target.state.fingerprint}", note)
        key = parent.data.tags.get(PIPELINE_TAG, key)
        note = next((other for other in self.notes if other.pipeline == key), None)
        said = Synced(target.name, parent.info.run_id, ["a run of its own"] if is_new else [])
        self._complete(parent, target, said)
        if target.ran is not None:
            ran = set(target.ran)
        else:  # of a new run nobody knows which stages ran, and which came from the cache
            ran = set(target.state.metrics) if is_new and note is None else set()
        self._complete_children(parent, target, ran | set(note.stages if note else ()), said)
        if parent.info.status != "FINISHED" and (is_new or note or target.key):
            self.client.set_terminated(parent.info.run_id, "FINISHED", target.at_ms)
            if not is_new:
                said.done.append("its end")
        if note and note.results == target.state.fingerprint:
            pending.remove(self.root, note.pipeline)
        return said

    def _find(self, condition: str) -> Run | None:
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([self.experiment_id], condition, max_results=1, order_by=order)
        return found[0] if found else None

    def _create(self, target: Revision, key: str, note: Note | None) -> Run:
        tags = {PIPELINE_TAG: key}
        created = self.client.create_run(
            self.experiment_id, start_time=target.at_ms, run_name=note.name if note else target.name, tags=tags
        )
        return self.client.get_run(created.info.run_id)

    def _complete(self, run: Run, target: Revision, said: Synced) -> None:
        tags = {RESULTS_TAG: target.state.fingerprint, "git_revision": target.revision}
        if target.key:
            tags |= {"dvc_exp_name": target.name, "dvc_exp_baseline": target.baseline}
        self._add(run, _resolved(target.state.params), target.state.table, target.at_ms, said, "")
        lacking = {key: value for key, value in tags.items() if key not in run.data.tags or key == RESULTS_TAG}
        if lacking and any(run.data.tags.get(key) != value for key, value in lacking.items()):
            store.send_tags(self.client, run.info.run_id, lacking)

    def _complete_children(self, parent: Run, target: Revision, ran: set[str], said: Synced) -> None:
        children = self.client.search_runs(
            [self.experiment_id],
            f"tags.`{CHILD_TAG}` = '{parent.info.run_id}'",
            order_by=["attributes.start_time ASC"],
        )
        newest = {run.data.tags.get("stage", ""): run for run in children}
        for stage, entry in target.state.stages.items():
            run = newest.get(stage)
            if run is not None and (run.info.status == "FAILED" or run.info.status == "KILLED"):
                run = None  # and ran again, untracked, if it is among those
            if run is None and stage not in ran:
                continue
            if is_new := run is None:
                tags = {CHILD_TAG: parent.info.run_id, "stage": stage}
                created = self.client.create_run(self.experiment_id, start_time=target.at_ms, run_name=stage, tags=tags)
                run = self.client.get_run(created.info.run_id)
                said.done.append(f"the stage {stage}")
            elif run.info.status != "FINISHED" and stage not in ran:
                continue  # it may be running
            params = entry.get("params", {}).get("params.yaml", {})
            metrics = numbers(target.state.metrics.get(stage, {}))
            self._add(run, params, metrics, target.at_ms, said, "" if is_new else f" of {stage}")
            self._add_curve(run, stage, target)
            if run.info.status != "FINISHED":
                self.client.set_terminated(run.info.run_id, "FINISHED", target.at_ms)
                if not is_new:
                    said.done.append(f"the end of {stage}")

    def _add(
        self, run: Run, params: Mapping[str, Any], metrics: Mapping[str, float], at_ms: int, said: Synced, of: str
    ) -> None:
        """Params that the run lacks, and metrics that it lacks or has otherwise."""
        lacking = {key: value for key, value in flatten(params).items() if key not in run.data.params}
        there = run.data.metrics
        others = {k: v for k, v in metrics.items() if not math.isclose(there.get(k, math.nan), v, rel_tol=1e-12)}
        store.send_params(self.client, run.info.run_id, lacking)
        now_ms = time.time_ns() // 1_000_000  # later than what is there, so that it is the latest value
        rows = []
        for key, value in others.items():
            history = self.client.get_metric_history(run.info.run_id, key) if key in there else []
            rows.append(MetricRow(key, value, now_ms if history else at_ms, max((m.step for m in history), default=0)))
        store.send_metrics(self.client, run.info.run_id, rows)
        said.done += [f"{len(lacking)} params{of}"] if lacking else []
        said.done += [f"{len(others)} metrics{of}"] if others else []

    def _add_curve(self, run: Run, stage: str, target: Revision) -> None:
        """The points of the stage's curve whose metrics the run has no history of."""
        content = target.read(f"metrics/plots/{stage.replace('-', '_')}.csv")
        table = list(csv.DictReader(io.StringIO(content.decode()))) if content else []
        column = next((name for name in STEP_COLUMNS if table and name in table[0]), None)
        if column is None:
            return
        table = [row for row in table if row.get("seed") == table[0].get("seed")]  # one curve a run
        rows = []
        for key in set(table[0]) - {column, "seed"} - set(run.data.metrics):
            for row in table:
                if row[key]:
                    rows.append(MetricRow(key, float(row[key]), target.at_ms, int(float(row[column]))))
        store.send_metrics(self.client, run.info.run_id, rows)


def _resolved(params: dict[str, Any]) -> dict[str, Any]:
    """Return params as a stage logs them; those of an older commit, which lack keys or have old names, unchanged."""
    if missing(params):
        return params
    try:
        return Params.model_validate(params).model_dump()
    except ValidationError:
        return params
