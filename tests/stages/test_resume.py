"""The training stages as programs: killed at random moments, resumed, and held against runs never killed."""

from __future__ import annotations

import glob
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.stages.conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the fixtures count, too
EXIT_CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


@dataclass(frozen=True)
class Case:
    """A stage with params under which everything that is kept matters: dropout, several seeds."""

    params: dict[str, Any]
    n_steps: int  # of all its trainings
    n_kills: int


CASES = {
    "pretrain": Case({"pretrain.dropout": 0.1, "pretrain.eval_interval_steps": 17}, 60, 6),
    "finetune-classify": Case({"finetune_classify.dropout": 0.1, "finetune_classify.seeds": [1, 2]}, 40, 6),
    "finetune-instruct": Case({"finetune_instruct.dropout": 0.1}, 20, 5),
}


@pytest.fixture
def project(tiny_twins: tuple[Project, Project], tmp_path: Path) -> Iterator[Project]:
    """A project in which all was made by `tiny`, but no training left a state."""
    copy = tiny_twins[1].copy_to(tmp_path / "project")
    copy.env = copy.env | {"GPT2CORE_SAVE_INTERVAL_S": "0"}  # a state after each step
    shutil.rmtree(copy.root / ".checkpoints")
    yield copy
    shutil.rmtree(copy.root)


def remove_outs(project: Project, stage: str) -> None:
    """As DVC does before it runs a stage."""
    definition = YAML(typ="safe").load(project.root / "dvc.yaml")["stages"][stage]
    for out in [*definition["outs"], *definition["metrics"]]:
        path = project.root / (out if isinstance(out, str) else next(iter(out)))
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def contents(project: Project) -> dict[str, str]:
    """The hash of each file that stages make."""
    found = (path for top in ("models", "metrics", "data/responses") for path in (project.root / top).rglob("*"))
    return {
        path.relative_to(project.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.is_file()
    }


def steps_kept(project: Project, stage: str) -> int:
    """The steps of the newest states, of all trainings together."""
    newest: dict[Path, int] = {}
    for path in map(Path, glob.glob(f"{project.root}/.checkpoints/{stage}-*/*/*.safetensors")):
        newest[path.parent] = max(newest.get(path.parent, 0), int(path.name.split(".")[0]))
    return sum(newest.values())


def start(project: Project, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=project.root, env=project.env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def kill(
    project: Project, process: subprocess.Popen[str], stage: str, at_step: int, delay_s: float, number: int
) -> str:
    """Wait for a state of that step, and a little longer; then send the signal to the process and all it started."""
    deadline_s = time.monotonic() + 200
    try:
        while steps_kept(project, stage) < at_step and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.002)
        time.sleep(delay_s)
        os.killpg(process.pid, number)
        return process.communicate(timeout=60)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


@pytest.mark.parametrize("stage", CASES)
def test_killed_at_random_it_ends_with_the_same_bytes(project: Project, stage: str) -> None:
    case = CASES[stage]
    module = f"stages.{stage.replace('-', '_')}"
    project.set_params(case.params)
    before = contents(project)
    remove_outs(project, stage)
    project.python("-m", module, timeout_s=120, GPT2CORE_RESUME="off")
    never_killed = contents(project)
    assert never_killed.keys() == before.keys()
    assert never_killed != before
    remove_outs(project, stage)

    draw = random.Random(f"kills of {stage}")
    project.env = project.env | {"GPT2CORE_TRACKING": "on" if stage == "pretrain" else "off"}
    in_training = sorted(draw.sample(range(1, case.n_steps * 2 // 3), case.n_kills - 2))
    moments = [
        (0, draw.uniform(0, 3), signal.SIGKILL),  # it may be importing still
        *((step, draw.uniform(0, 0.02), draw.choice(list(EXIT_CODES))) for step in in_training),
        (case.n_steps, draw.uniform(0, 0.2), signal.SIGKILL),  # the training is over, its results are not written
    ]
    n_saved = 0
    for at_step, delay_s, number in moments:
        kept = steps_kept(project, stage)
        at_step = at_step and max(at_step, min(kept + 1, case.n_steps))  # a signal may have saved a step more
        process = start(project, module)
        said = kill(project, process, stage, at_step, delay_s, number)
        assert process.returncode == EXIT_CODES[number], said
        assert "Traceback" not in said
        assert contents(project).items() <= never_killed.items(), "something is half-written"
        if 0 < kept < at_step:
            assert re.search(r"resumed at step \d+ of \d+ \(checkpoint of ", said), said
        if "stopping: " in said:  # and not between two seeds
            assert re.search(r"saved at step \d+ of \d+; run the same command to continue", said), said
            n_saved += 1
    assert n_saved > 0
    assert steps_kept(project, stage) == case.n_steps
    said = project.python("-m", module, timeout_s=120).output
    assert "resumed at step" in said
    assert contents(project) == never_killed
    if stage == "pretrain":
        check_its_run(project, case.n_steps)


def check_its_run(project: Project, n_steps: int) -> None:
    """One run of the stage, under one of the pipeline, with every step and the results; ended well."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project.root / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    # A run that was killed before there was a state to note it in is another's.
    finished = [run for run in children if run.info.status == "FINISHED"]
    assert len(finished) == len(children) == 1
    assert "error" not in finished[0].data.tags
    history = client.get_metric_history(finished[0].info.run_id, "train_loss")
    by_step = {metric.step: set() for metric in history}
    for metric in history:
        by_step[metric.step].add(metric.value)
    assert by_step.keys() <= set(range(1, n_steps + 1))
    assert by_step[n_steps]


def test_dvc_killed_with_its_stage_goes_on(tiny_twins: tuple[Project, Project], project: Project) -> None:
    draw = random.Random("kills of dvc")
    repro = ("dvc", "repro", "--force", "--single-item", "pretrain")
    for at_step in sorted(draw.sample(range(1, 58), 2)):
        kill(project, start(project, *repro), "pretrain", at_step, draw.uniform(0, 0.02), signal.SIGKILL)
        assert not (project.root / "models/pretrained").exists()
    said = project.run(sys.executable, "-m", *repro).output
    assert re.search(r"pretrain: resumed at step [1-9]\d* of 60", said)
    assert contents(project) == contents(tiny_twins[1])
    assert project.lock()["pretrain"] == tiny_twins[1].lock()["pretrain"]


def test_two_at_once_end_the_same(tiny_twins: tuple[Project, Project], project: Project) -> None:
    """As two workers of a queue: the second waits, and takes over what the first came to."""
    remove_outs(project, "finetune-instruct")
    both = [start(project, "stages.finetune_instruct") for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    waited, first = sorted(said, key=lambda text: "waiting until it ends" not in text)
    assert "waiting until it ends" not in first
    assert "resumed" not in first
    assert "instruct: resumed at step 20 of 20" in waited
    assert contents(project) == contents(tiny_twins[1])
