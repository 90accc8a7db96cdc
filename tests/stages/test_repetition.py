"""The same results, whatever the order, the way to run and the kills; and everything back from a remote."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.stages.conftest import Project, clone
from tests.stages.test_experiments import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the fixtures count, too

KILLS = 4
TARGET = "finetune-classify"  # two trainings


def written(root: Path) -> dict[str, bytes]:
    """dvc.lock, which has the hash of each output, and all numbers."""
    paths = [root / "dvc.lock", *(root / "metrics").rglob("*")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(paths) if path.is_file()}


def leftovers(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.rglob("*.tmp") if ".dvc" not in path.parts]


# -- Kills and order -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def between_writes_of_the_lock(dvc_pid: int) -> Iterator[None]:
    """DVC stands still, and not in the midst of dvc.lock: that is written in place, and what is cut off is lost."""
    dvc = psutil.Process(dvc_pid)
    while True:
        dvc.suspend()
        while dvc.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.01)
        if dvc.status() == psutil.STATUS_ZOMBIE or not any(f.path.endswith("dvc.lock") for f in dvc.open_files()):
            break
        dvc.resume()
        time.sleep(0.1)
    yield
    os.kill(dvc_pid, signal.SIGCONT)  # or it would not see SIGTERM


def killed(project: Project, after_s: float, number: int, *command: str) -> bool:
    """Run dvc, and send it and all that it started a signal after some time. Returns whether it had ended before."""
    with (project.root.parent / f"{project.root.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *command],
            cwd=project.root, env=project.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(timeout=after_s)
        except subprocess.TimeoutExpired:
            with between_writes_of_the_lock(process.pid):
                os.killpg(process.pid, number)
        try:
            return process.wait(timeout=60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_another_order_and_kills_change_nothing(tiny_twins: tuple[Project, Project], tmp_path: Path) -> None:
    """`dvc repro finetune-instruct` first, killed at random moments; then the rest, killed too."""
    project = clone(tmp_path / "killed")
    for name in ("embedded", "tiny"):  # as the twins
        project.profile(name)
        project.commit(f"the profile {name}")
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    kills = 0
    for command in (("repro", "finetune-instruct"), ("repro",)):
        while kills < KILLS:
            number = rng.choice((signal.SIGKILL, signal.SIGTERM))
            # The first one early: a fast machine may be through with the rest before the next.
            if killed(project, rng.uniform(2, 60 if kills else 15), number, *command):
                break
            kills += 1
        project.dvc(*command, timeout_s=600)
    assert kills > 0, "it was through before the first kill"
    assert written(project.root) == written(tiny_twins[1].root), f"seed {seed}"
    assert leftovers(project.root) == []
    assert project.dvc("repro").stages_run == []


# -- Ways to run it --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_repro(tiny_twins: tuple[Project, Project], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    project = changed(tiny_twins[1], tmp_path_factory.mktemp("repro") / "project")
    project.dvc("repro", TARGET, timeout_s=420)
    return written(project.root)


def changed(twin: Project, root: Path) -> Project:
    """A copy with other params. Its cache holds no results of these: DVC would only fetch them."""
    project = twin.copy_to(root)
    project.set_params(SMALL)
    project.commit("the baseline")
    return project


@pytest.mark.parametrize("way", ["exp run", "exp run --temp", "queue"])
def test_every_way_to_run_gives_the_same(
    tiny_twins: tuple[Project, Project], by_repro: dict[str, bytes], tmp_path: Path, way: str
) -> None:
    project = changed(tiny_twins[1], tmp_path / "project")
    before = written(project.root)
    if way == "queue":
        project.dvc("exp", "run", "--queue", "--name", "it", TARGET, timeout_s=120)
        try:
            project.dvc("queue", "start", timeout_s=120)
            deadline_s = time.monotonic() + 600
            while "Success" not in (status := project.dvc("queue", "status", timeout_s=60).stdout):
                assert "Failed" not in status, project.dvc("queue", "logs", "it", check=False).output
                assert time.monotonic() < deadline_s, status
                time.sleep(3)
        finally:
            project.dvc("queue", "stop", "--kill", timeout_s=60, check=False)
    else:
        project.dvc(*way.split(), "--name", "it", TARGET, timeout_s=600)
    if way != "exp run":
        assert written(project.root) == before  # the workspace is not touched
        project.dvc("exp", "apply", "it", timeout_s=120)
    assert written(project.root) == by_repro
    assert before != by_repro  # something was run


# -- The environment -------------------------------------------------------------------------------------------------


def test_a_training_stage_records_its_environment_with_its_checkpoints(tiny_twins: tuple[Project, Project]) -> None:
    """With tracking and without, outside everything that DVC or Git compares."""
    for twin in tiny_twins:
        for stage in ("pretrain", "finetune-classify", "finetune-instruct"):
            (path,) = (twin.root / ".checkpoints").glob(f"{stage}-*/environment.json")
            environment = json.loads(path.read_text())
            assert environment.keys() >= {"python", "torch", "cpu", "threads", "cpu_capability", "device"}
        assert not (twin.root / "metrics/environment.json").exists()


# -- Remotes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 server on loopback, with an empty bucket `gpt2core`."""
    server_module = pytest.importorskip("moto.server")
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="gpt2core")
        yield address
    finally:
        server.stop()


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_everything_comes_back_from_a_remote(
    tiny_twins: tuple[Project, Project], tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    project = tiny_twins[1].copy_to(tmp_path / "project")
    if kind == "local":
        project.dvc("remote", "add", "--default", "store", tmp_path / "store")
    else:
        address = request.getfixturevalue("bucket")
        project.env |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        project.dvc("remote", "add", "--default", "store", "s3://gpt2core/dvc")
        project.dvc("remote", "modify", "store", "endpointurl", address)
    project.commit("results and remote")
    results = {path: path.read_bytes() for path in outs(project.root)}
    assert len(results) > 20
    project.dvc("push", timeout_s=240)

    for path in results:
        path.unlink()
    shutil.rmtree(project.root / ".dvc/cache")
    project.dvc("pull", timeout_s=240)
    assert {path: path.read_bytes() for path in outs(project.root)} == results
    before = written(project.root)
    assert project.dvc("repro").stages_run == []
    assert written(project.root) == before
    assert project.git("status", "--porcelain") == ""

    elsewhere = Project(tmp_path / "elsewhere", project.env)  # as somebody else gets it
    subprocess.run(["git", "clone", "--quiet", project.root, elsewhere.root], check=True, timeout=120)
    elsewhere.dvc("pull", timeout_s=240)
    assert elsewhere.dvc("repro").stages_run == []
    assert written(elsewhere.root) == before


def outs(root: Path) -> list[Path]:
    """The files of all outputs that DVC keeps."""
    folders = [root / name for name in ("data/raw", "data/tokens", "data/openai", "data/responses", "models")]
    files = (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if path.parent.name != "none"]  # models/none is in Git
