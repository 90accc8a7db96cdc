"""Two processes that torchrun starts train as one does."""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch
from ruamel.yaml import YAML

from gpt2core.checkpoint.model_dir import load
from gpt2core.params import read_values
from gpt2core.params.profiles import render_profile
from gpt2core.training import distributed
from tests.training.distributed_worker import PAUSE_STEP, RECIPES, SHARDINGS

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def run_worker(folder: Path, *launcher: str) -> list[dict[str, Any]]:
    """What each process of the worker found."""
    folder.mkdir()
    command = [sys.executable, *launcher, "-m", "tests.training.distributed_worker", str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return run_worker(folder / "one")[0]


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return run_worker(folder / "two", *TORCHRUN)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "dropout"])
def test_two_processes_train_as_one(
    one: dict[str, Any], two: list[dict[str, Any]], folder: Path, sharding: str, recipe: str
) -> None:
    name = f"{sharding}-{recipe}"
    alone = one[name]
    assert alone["steps"][-1][0] < alone["steps"][0][0] - 0.1, "it has learned nothing"
    for process in two:
        assert process[name]["steps"] == [pytest.approx(step, rel=1e-6) for step in alone["steps"]]
    theirs, ours = (safetensors.torch.load_file(folder / n / f"{name}.safetensors") for n in ("one", "two"))
    assert theirs.keys() == ours.keys()
    for key in theirs:
        # Muon's products are in float32 all the same.
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-5 if recipe == "muon" else 1e-9)


@pytest.mark.slow
def test_sharded_processes_hold_a_part_each(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    n_weights = one["full-adamw"]["held"]
    assert [process["none-adamw"]["held"] for process in two] == [n_weights, n_weights]
    held = [process["full-adamw"]["held"] for process in two]
    assert sum(held) == n_weights
    assert max(held) < 0.55 * n_weights


@pytest.mark.slow
def test_all_pause_when_one_wants_to(two: list[dict[str, Any]]) -> None:
    assert {tuple(found["pauses"]) for process in two for found in process.values()} == {(PAUSE_STEP,)}


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_processes_drop_other_units(one: dict[str, Any], two: list[dict[str, Any]], sharding: str) -> None:
    name = f"{sharding}-dropout"
    first, second = (process[name] for process in two)
    assert first["drawn"] != second["drawn"]
    assert first["steps"] == second["steps"] != one[name]["steps"]


def test_the_share_of_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 4, 8):
        for n in (1, 5, 8, 12, 24):
            for batch_size in (1, 3, 4, 100):
                shares = []
                for rank in range(size):
                    monkeypatch.setattr(distributed, "world_size", lambda size=size: size)
                    monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                    shares.append(distributed.local_slices(n, batch_size))
                assert [row for share in shares for rows in share for row in rows] == list(range(n))
                assert len({len(share) for share in shares}) == 1
                lengths = [len(rows) for share in shares for rows in share]
                assert max(lengths) <= min(batch_size, min(lengths) + 1)
                if n % size == 0:
                    assert {sum(map(len, share)) for share in shares} == {n // size}


def test_alone_the_micro_batches_are_the_params() -> None:
    assert distributed.local_slices(24, 8) == [range(0, 8), range(8, 16), range(16, 24)]
    assert distributed.all_reduce_sum(2.5) == 2.5


# The stage itself.
PARAMS = {
    "batch_size": 4, "grad_accum_steps": 3, "max_steps": 24, "warmup_steps": 4, "eval_interval_steps": 8,
    "eval_batches": 3, "optimizer": "muon", "sample_tokens": 20, "compile": False, "dtype": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A folder in which `stages.pretrain` can run."""

    root: Path

    def start(self, *launcher: str, **params: Any) -> subprocess.Popen[str]:
        """Start it with these params; it ends when the test does."""
        yaml = YAML()
        values = read_values(ROOT / "profiles/tiny.yaml")
        values["pretrain"] |= PARAMS | params
        values["numerics"] = "native"  # portable numerics compute in one process
        yaml.dump(values, self.root / "params.yaml")
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "stages.pretrain"], cwd=self.root, env=self.env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GPT2CORE_"))}
        return env | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GPT2CORE_TRACKING": "off", "GPT2CORE_SAVE_INTERVAL_S": "0"
        }  # fmt: skip

    def end(self, process: subprocess.Popen[str]) -> str:
        """Wait for the stage; what it said."""
        try:
            return process.communicate(timeout=300)[0]
        finally:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.communicate()

    def run(self, *launcher: str, **params: Any) -> str:
        """Run it to its good end; what it said."""
        process = self.start(*launcher, **params)
        said = self.end(process)
        assert process.returncode == 0, said[-4000:]
        return said

    def curve(self) -> list[dict[str, float]]:
        with (self.root / "metrics/plots/pretrain.csv").open() as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]

    def weights(self) -> dict[str, torch.Tensor]:
        """Of the model directory, as anybody reads it."""
        model, tokenizer = load(self.root / "models/pretrained")
        assert tokenizer is not None
        return dict(model.named_parameters())

    def results(self) -> dict[str, bytes]:
        """The bytes of all that the stage makes."""
        paths = [path for top in ("models", "metrics") for path in (self.root / top).rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    stage = Stage(folder / "data")
    stage.root.mkdir()
    (stage.root / "params.yaml").write_text(render_profile(ROOT / "profiles/tiny.yaml"))
    for name in ("download_data", "tokenize"):
        command = [sys.executable, "-m", f"stages.{name}"]
        subprocess.run(command, cwd=stage.root, env=stage.env, check=True, capture_output=True, timeout=600)
    return stage.root / "data"


@pytest.fixture
def stages(data: Path, tmp_path: Path) -> Iterator[tuple[Stage, Stage]]:
    """Two of them, with the same tokens."""
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").symlink_to(data)
        made.append(Stage(tmp_path / name))
    yield made[0], made[1]


@pytest.fixture(scope="module")
def alone(data: Path, folder: Path) -> Stage:
    """The stage as one process runs it."""
    stage = Stage(folder / "alone")
    stage.root.mkdir()
    (stage.root / "data").symlink_to(data)
    stage.run()
    return stage


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_the_stage_under_torchrun_is_the_stage(alone: Stage, stages: tuple[Stage, Stage], sharding: str) -> None:
    stage = stages[0]
    said = stage.run(*TORCHRUN, sharding=sharding, launcher="torchrun --standalone --nproc-per-node=2")
    assert "Traceback" not in said
    assert said.count("24/24") <= 1, "more than one progress bar"
    assert len(alone.curve()) == 3
    for ours, theirs in zip(stage.curve(), alone.curve(), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)
    weights, theirs = stage.weights(), alone.weights()
    assert weights.keys() == theirs.keys()
    for name, weight in weights.items():
        assert (weight - theirs[name]).norm() < 0.01 * theirs[name].norm() + 1e-3, name
    assert stage.results().keys() == alone.results().keys()
    metrics, theirs = (json.loads(s.results()["metrics/pretrain.json"]) for s in (stage, alone))
    assert metrics == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "victim"), [("none", 1), ("full", 0)])
def test_a_killed_process_is_started_again_and_the_bytes_are_the_same(
    stages: tuple[Stage, Stage], sharding: str, victim: int
) -> None:
    killed, never = stages
    params = {"sharding": sharding, "launcher": "torchrun --nproc-per-node=2", "dropout": 0.2}
    never.run(*TORCHRUN, **params)
    process = killed.start(*TORCHRUN, "--max-restarts=3", **params)
    try:
        wait_for_state(killed, 4)  # of 24
        worker = next(p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == str(victim))
        worker.send_signal(signal.SIGKILL)
    finally:
        said = killed.end(process)
    assert process.returncode == 0, said[-4000:]
    assert said.count("pretrain: resumed at step") == 1
    assert killed.results() == never.results()


def wait_for_state(stage: Stage, step: int) -> None:
    """Until the stage has saved a state of this step or a later one."""
    end_s = time.monotonic() + 300
    while time.monotonic() < end_s:
        found = map(os.path.basename, glob.glob(f"{stage.root}/.checkpoints/*/*/0*"))  # Path.glob may fail if one goes
        if any(
            int(name.split(".")[0]) >= step for name in found if re.fullmatch(r"\d+\.\w{64}\.(json|safetensors)", name)
        ):
            return
        time.sleep(0.005)
    raise TimeoutError(f"no state of step {step}")


@pytest.mark.slow
def test_terminated_all_save_and_go_on(stages: tuple[Stage, Stage]) -> None:
    """torchrun hands a SIGTERM on to its processes; the state that they save then is whole though sharded."""
    stopped, never = stages
    params = {"sharding": "full", "launcher": "torchrun --nproc-per-node=2", "dropout": 0.2}
    never.run(*TORCHRUN, **params)
    process = stopped.start(*TORCHRUN, **params)
    try:
        wait_for_state(stopped, 5)
        process.terminate()
    finally:
        said = stopped.end(process)
    assert process.returncode != 0
    assert said.count("finishing this step and saving it first") == 1
    assert said.count("pretrain: saved at step") == 1
    assert "pretrain: resumed at step" in stopped.run(*TORCHRUN, **params)
    assert stopped.results() == never.results()


@pytest.mark.slow
def test_one_message_for_all_processes(stages: tuple[Stage, Stage]) -> None:
    stage = stages[0]
    process = stage.start(*TORCHRUN, batch_size=3)
    said = stage.end(process)
    assert process.returncode == 1
    problem = (
        "pretrain.launcher: 2 processes do not divide the 9 windows of a step (grad_accum_steps 3 * batch_size 3); "
        "allowed: 1, 3, 9"
    )
    assert said.splitlines().count(f"error: {problem}") == 1
    # torchrun's own report, which is the last thing to be seen, has it too.
    assert said[said.index("Root Cause") :].count(problem) == 1
    assert "stages/pretrain.py" not in said
    assert not stage.results()
