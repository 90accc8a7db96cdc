"""`gpt2core sync-mlflow` after real pipeline runs: untracked ones, those whose tracking server broke, experiments."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2core.errors import UserError
from gpt2core.tracking import store
from gpt2core.tracking.sync import sync
from tests.tracking.mlflow_server import mlflow_server
from tests.tracking.proxy import proxy

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STAGE = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
from gpt2core.config import read_yaml
from gpt2core.log import log_to_stderr
from gpt2core.tracking import track_stage

stage = sys.argv[1]
params = read_yaml("params.yaml")
x = params[stage]["x"]
log_to_stderr()
with track_stage(stage, SimpleNamespace(model_dump=lambda: params), sections=(stage,)) as run:
    for step in range(4):
        run.log_metrics({"loss": float(x - step)}, step)
    if os.environ.get("BREAKS") == stage:  # in the middle of the run
        run._flush(up_to_now=True)
        Path(os.environ["BROKEN"]).touch()
    metrics = {"val_loss": x / 2, "by": {"a": x}}
    Path("metrics/plots").mkdir(parents=True, exist_ok=True)
    Path(f"metrics/{stage}.json").write_text(json.dumps(metrics))
    Path(f"metrics/plots/{stage}.csv").write_text("step,loss\\n" + "".join(f"{s},{x - s}\\n" for s in range(4)))
    Path(f"{stage}.out").write_text(str(x))
    run.finish(metrics)
"""
OUTS = (
    "outs: [{name}.out, metrics/plots/{name}.csv: {{cache: false}}], metrics: [metrics/{name}.json: {{cache: false}}]"
)
X = {"one": 6, "two": 8, "three": 10}


def dvc_yaml() -> str:
    lines = ["stages:"]
    for name, deps in (("one", ""), ("two", "deps: [one.out], "), ("three", "")):
        command = f"{sys.executable} stage.py {name}"
        lines.append(f"  {name}: {{cmd: {command}, params: [{name}.x], {deps}{OUTS.format(name=name)}}}")
    return "\n".join(lines) + "\n"


class Project:
    """A clone with a pipeline of three quick stages: one -> two, and three beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        private = ("DVC_", "GPT2CORE_", "MLFLOW_", "GIT_")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(private)}
        self.env |= {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
        for role in ("AUTHOR", "COMMITTER"):
            self.env |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@example.invalid"}

    def run(self, *command: str, **env: str) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.env | env, capture_output=True, text=True, timeout=240
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def dvc(self, *arguments: str, **env: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, **env)

    def commit(self) -> None:
        self.run("git", "add", ".")
        self.run("git", "commit", "-qm", "more")

    def x(self, **values: int) -> None:
        lines = (f"{name}: {{x: {x}}}\n" for name, x in (X | values).items())
        (self.root / "params.yaml").write_text("seed: 7\n" + "".join(lines))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("fresh") / "project"
    root.mkdir()
    project = Project(root)
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(dvc_yaml())
    (root / ".gitignore").write_text("/mlflow.db*\n/mlartifacts/\n/.locks/\n/.checkpoints/\n")
    project.x()
    project.run("git", "init", "-q")
    project.dvc("init", "-q")
    project.dvc("config", "core.autostage", "false")
    project.commit()
    store.prepare_mlflow()
    store.local_store(root)
    return project


@pytest.fixture(scope="module")
def untracked(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Reproduced and committed, of which MLflow knows nothing."""
    project = copy(fresh, tmp_path_factory.mktemp("untracked") / "project")
    project.dvc("repro", GPT2CORE_TRACKING="off")
    project.commit()
    return project


def copy(project: Project, root: Path) -> Project:
    subprocess.run(["cp", "-a", str(project.root), str(root)], check=True)
    return Project(root)


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def runs(root: Path, uri: str = "") -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """The parents, the oldest first; and of each, by its id, the children by their stages."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri or f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("gpt2core")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children: dict[str, dict[str, Any]] = {parent.info.run_id: {} for parent in parents}
    for run in found:
        if parent := run.data.tags.get("mlflow.parentRunId"):
            assert run.data.tags["stage"] not in children[parent], "a stage is there twice"
            children[parent][run.data.tags["stage"]] = run
    return parents, children


def table(**values: int) -> dict[str, float]:
    known = X | values
    rows = [(f"{name}.val_loss", x / 2) for name, x in known.items()] + [(f"{n}.by.a", x) for n, x in known.items()]
    return {name: float(value) for name, value in rows}


def without_durations(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "duration_s" not in name}


def test_results_that_mlflow_never_saw_get_a_run_and_then_nothing(untracked: Project, tmp_path: Path) -> None:
    project = copy(untracked, tmp_path / "project")
    (shown,) = sync(project.root)  # workspace and HEAD are the same
    assert shown.done[0] == "a run of its own"
    (parent,), children = runs(project.root)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == table()
    assert parent.data.params == {"seed": "7", "one.x": "6", "two.x": "8", "three.x": "10"}
    stages = children[parent.info.run_id]
    assert {name: run.info.status for name, run in stages.items()} == dict.fromkeys(X, "FINISHED")
    assert stages["two"].data.params == {"two.x": "8"}
    assert stages["two"].data.metrics == {"val_loss": 4.0, "by.a": 8.0, "loss": 5.0}
    from mlflow import MlflowClient

    history = MlflowClient(f"sqlite:///{project.root}/mlflow.db").get_metric_history(stages["two"].info.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(0, 8.0), (1, 7.0), (2, 6.0), (3, 5.0)]

    before = (project.root / "mlflow.db").read_bytes()
    assert [shown.done for shown in sync(project.root)] == [[]]
    assert [shown.done for shown in sync(project.root, ["HEAD"])] == [[]]
    assert (project.root / "mlflow.db").read_bytes() == before


def test_a_parent_shows_the_stages_that_came_from_the_cache(untracked: Project, tmp_path: Path) -> None:
    project = copy(untracked, tmp_path / "project")
    project.x(one=20)
    said = project.dvc("repro", "one")
    assert "Running stage 'one'" in said
    (parent,), children = runs(project.root)
    expected = {name: value for name, value in table(one=20).items() if not name.startswith("two.")}
    assert without_durations(parent.data.metrics) == expected, "two was made of another one"
    project.dvc("repro")
    (_, parent), children = runs(project.root)
    assert without_durations(parent.data.metrics) == table(one=20)
    assert set(children[parent.info.run_id]) == {"two"}
    assert [shown.done for shown in sync(project.root)][0] == [], "the workspace is that run"


def test_untracked_experiments_are_filled_in_with_the_stages_that_ran(untracked: Project, tmp_path: Path) -> None:
    project = copy(untracked, tmp_path / "project")
    project.dvc("exp", "run", "--temp", "-n", "faster", "-S", "three.x=3", GPT2CORE_TRACKING="off")
    project.dvc("exp", "run", "--temp", "-n", "slower", "-S", "one.x=30")  # tracked
    (tracked,), _ = runs(project.root)
    (shown,) = sync(project.root, ["slower"])
    assert (shown.run_id, shown.done) == (tracked.info.run_id, [])
    assert {shown.name: bool(shown.done) for shown in sync(project.root)} == {
        f"workspace {project.run('git', 'rev-parse', 'HEAD')[:7]}": True, "faster": True, "slower": False,
    }  # fmt: skip
    parents, children = runs(project.root)
    faster = next(parent for parent in parents if parent.info.run_name == "faster")
    assert faster.data.metrics == table(three=3)
    assert faster.data.params["three.x"] == "3"
    assert faster.data.tags["dvc_exp_baseline"] == project.run("git", "rev-parse", "HEAD").strip()
    assert set(children[faster.info.run_id]) == {"three"}, "the others came from the cache"
    assert [shown.done for shown in sync(project.root)] == [[], [], []]
    project.dvc("exp", "run", "--temp", "-n", "seed", "-S", "seed=8", "-S", "three.x=3", GPT2CORE_TRACKING="off")
    shown = json.loads(project.run(sys.executable, "-m", "gpt2core", "seeds", "--all", "--json"))
    (group,) = shown
    assert group["seeds"] == [7, 8], "the experiment and the one beside it"
    assert {row["metric"]: (row["n"], row["mean"]) for row in group["figures"]}["three.val_loss"] == (2, 1.5)
    with pytest.raises(UserError, match="nobody: neither an experiment nor a Git revision; experiments: faster, slow"):
        sync(project.root, ["nobody"])


def test_a_grid_in_the_queue_of_two_workers_loses_nothing(untracked: Project, tmp_path: Path) -> None:
    project = copy(untracked, tmp_path / "project")
    project.dvc("exp", "run", "--queue", "-S", "three.x=3,4,5")
    try:
        project.dvc("exp", "run", "--run-all", "--jobs", "2")
        said = project.dvc("queue", "status")
    finally:
        project.dvc("queue", "stop", "--kill")
    assert said.count("Success") == 3, said
    parents, children = runs(project.root)
    by_x = {parent.data.params["three.x"]: parent for parent in parents}
    assert by_x.keys() == {"3", "4", "5"} and len(parents) == 3
    assert {parent.info.run_name for parent in parents} <= set(project.dvc("exp", "list", "--name-only").split())
    for x, parent in by_x.items():
        assert without_durations(parent.data.metrics) == table(three=int(x)), "those of the cached stages, too"
        assert parent.info.status == "FINISHED"
        assert set(children[parent.info.run_id]) == {"three"}
    assert all(shown.done == [] for shown in sync(project.root, [run.info.run_name for run in parents]))


# -- A tracking server that breaks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real `mlflow server`."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("server")
    with mlflow_server("server", folder, "--artifacts-destination", str(folder / "artifacts")) as port:
        MlflowClient(f"http://127.0.0.1:{port}").search_experiments()  # opens its store
        yield port


@pytest.mark.parametrize("mode", ["dies", "fails", "hangs"])
def test_a_server_that_breaks_in_the_middle_is_a_warning_and_is_filled_in_later(
    fresh: Project, server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    project = copy(fresh, tmp_path / "project")
    with proxy(server, tmp_path / "broken", mode) as between:
        # A server that is only busy is not given up: what is asked again could be done twice.
        timeout_s = "5" if mode == "hangs" else "60"
        said = project.dvc(
            "repro", MLFLOW_TRACKING_URI=between.uri, MLFLOW_HTTP_REQUEST_TIMEOUT=timeout_s, BREAKS="two",
            BROKEN=str(tmp_path / "broken"),
        )  # fmt: skip
        assert between.served and between.refused
    warnings = [line for line in said.splitlines() if "warning" in line]
    missed = [line.split()[2] for line in warnings]
    assert missed[0] == "two" or missed[0] == "three"
    assert len(missed) == len(set(missed)) and "two" in missed, "one a stage"
    assert "Traceback" not in said
    assert (project.root / "metrics/three.json").exists(), "the pipeline went on"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server}")
    (shown,) = sync(project.root, [])
    from mlflow import MlflowClient

    assert "a run of its own" not in shown.done, "the run that broke off is the one to complete"
    parents, children = runs(project.root, f"http://127.0.0.1:{server}")
    (parent,) = [parent for parent in parents if parent.info.run_id == shown.run_id]
    assert parent.info.status == "FINISHED"
    assert without_durations(parent.data.metrics) == table()
    stages = children[parent.info.run_id]
    assert {name: run.info.status for name, run in stages.items()} == dict.fromkeys(X, "FINISHED")
    client = MlflowClient(f"http://127.0.0.1:{server}")
    for run in stages.values():
        losses = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
        x = X[run.info.run_name]
        assert sorted(losses) == [(step, float(x - step)) for step in range(4)], "each point once"
    for name, x in X.items():
        assert stages[name].data.metrics["val_loss"] == x / 2
    assert [shown.done for shown in sync(project.root)] == [[]]
    assert not list((project.root / ".checkpoints/untracked").glob("*.json"))


def test_a_store_that_does_not_answer_is_told_of(untracked: Project, tmp_path: Path, monkeypatch) -> None:
    with socket.socket() as unused:  # bound, not listening
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(UserError, match="does not answer .*unset MLFLOW_TRACKING_URI"):
            sync(untracked.root)
