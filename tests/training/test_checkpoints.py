"""States on a real disk: killed writers, damaged files, a disk that is full, two processes, old folders."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpt2core import files, numerics, runtime, stage_code
from gpt2core.training import checkpoints as states_module
from gpt2core.training.checkpoints import CheckpointManager, digest, fingerprint, prune, stage_checkpoints
from gpt2core.training.storage import LocalFolder

ROOT = Path(__file__).parents[2]
DAY_S = 86400


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kept(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(LocalFolder(tmp_path / "training"))


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((30, 40), float(step)), "step": torch.tensor(float(step))}


def files_of(states: CheckpointManager) -> list[Path]:
    return sorted(states.folder.scratch.iterdir())


# -- A state ---------------------------------------------------------------------------------------------------------


def test_a_state_comes_back_to_the_bit(kept: CheckpointManager) -> None:
    saved = {
        "a": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "c": torch.tensor(7.0), "d": torch.get_rng_state(),
        "e": torch.empty(0, 3),
    }  # fmt: skip
    extra_state = {"curve": [{"loss": 0.1 + 0.2, "tokens": 2**53}], "text": "naïve\n"}
    assert kept.newest() is None
    assert kept.save(12, saved, extra_state)
    state = kept.newest()
    assert state is not None
    assert (state.step, state.extra_state) == (12, extra_state)
    assert state.tensors.keys() == saved.keys()
    for name, tensor in saved.items():
        assert state.tensors[name].dtype == tensor.dtype
        assert torch.equal(state.tensors[name], tensor), name


def test_notes_alone_are_a_state(kept: CheckpointManager) -> None:
    kept.save(0, {}, {"answers": ["yes"]})
    state = kept.newest()
    assert state is not None
    assert (state.step, state.tensors, state.extra_state) == (0, {}, {"answers": ["yes"]})


def test_the_two_newest_are_kept(kept: CheckpointManager) -> None:
    for step in (9, 10, 101, 1000):
        kept.save(step, tensors(step), {})
    assert [int(path.name.split(".")[0]) for path in files_of(kept)] == [101, 1000]


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


DAMAGES = {
    **{f"a bit at {place:.0%}": lambda path, place=place: flip(path, place) for place in (0, 0.01, 0.5, 0.97, 1)},
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "another's bytes": lambda path: shutil.copy(files_of(CheckpointManager(LocalFolder(path.parent)))[0], path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_noticed_and_the_one_before_used(
    kept: CheckpointManager, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    for step in (5, 10):
        kept.save(step, tensors(step), {"step": step})
    DAMAGES[damage](files_of(kept)[1])
    state = kept.newest()
    assert state is not None
    assert (state.step, state.extra_state) == (5, {"step": 5})
    assert torch.equal(state.tensors["weight"], tensors(5)["weight"])
    assert re.fullmatch(
        r"warning: the checkpoint of step 10 is damaged \(.+\); it is not used\n", capsys.readouterr().err
    )
    DAMAGES["cut"](files_of(kept)[0])
    assert kept.newest() is None


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 3,000 bytes: writing fails as on a full disk, with another errno."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_warning_and_costs_no_earlier_state(
    kept: CheckpointManager, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    kept.save(1, tensors(1), {})
    before = {path: path.read_bytes() for path in files_of(kept)}
    request.getfixturevalue("full_disk")
    assert not kept.save(2, tensors(2), {})
    assert not kept.save(3, tensors(3), {})
    said = capsys.readouterr().err
    assert said.startswith("warning: step 2: the checkpoint was not saved (")
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in files_of(kept)} == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    assert kept.save(4, tensors(4), {})


WRITER = """
import sys, torch
from pathlib import Path
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.storage import LocalFolder

states = CheckpointManager(LocalFolder(Path(sys.argv[1])))
for step in range(1, 100_000):
    states.save(step, {"weight": torch.full((300, 1000), float(step))}, {"step": step})
    print(step, flush=True)
"""


def start(code: str, *arguments: object, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_state(kept: CheckpointManager) -> None:
    draw = random.Random(7)
    for _ in range(4):
        writer = start(WRITER, kept.folder.scratch)
        assert writer.stdout
        for _ in range(draw.randrange(1, 20)):
            printed = int(writer.stdout.readline())
        time.sleep(draw.random() * 0.01)
        writer.kill()
        writer.communicate(timeout=30)
        state = kept.newest()
        assert state is not None
        assert printed <= state.step == state.extra_state["step"]
        assert torch.equal(state.tensors["weight"], torch.full((300, 1000), float(state.step)))
        shutil.rmtree(kept.folder.scratch)


# -- A stage's folder ------------------------------------------------------------------------------------------------


def folders(project: Path) -> list[Path]:
    return sorted(path for path in (project / ".checkpoints").iterdir() if path.is_dir())


def test_a_stage_comes_back_to_its_states_and_ends_with_one(project: Path) -> None:
    with pytest.raises(ZeroDivisionError), stage_checkpoints("pretrain", {"lr": 1}, []) as stage:
        states = stage.training("pretrain")
        assert states is not None
        states.save(1, tensors(1), {})
        states.save(2, tensors(2), {})
        raise ZeroDivisionError
    (folder,) = folders(project)
    assert re.fullmatch("pretrain-[0-9a-f]{16}", folder.name)
    (folder / "pretrain" / states_module.SAVING).write_bytes(b"half")
    with stage_checkpoints("pretrain", {"lr": 1}, []) as stage:
        assert not list(folder.rglob(states_module.SAVING))
        states = stage.training("pretrain")
        assert states is not None
        assert states.newest().step == 2  # type: ignore[union-attr]
    assert [path.name.split(".")[0] for path in files_of(states)] == ["0000000002"]
    assert (folder / "finished").exists()
    with stage_checkpoints("pretrain", {"lr": 2}, []) as stage:
        assert stage.training("pretrain").newest() is None  # type: ignore[union-attr]


def test_a_stage_that_saved_nothing_leaves_nothing(project: Path) -> None:
    with pytest.raises(ZeroDivisionError), stage_checkpoints("pretrain", {}, []):
        raise ZeroDivisionError
    assert [path.name for path in (project / ".checkpoints").iterdir()] == ["states.lock"]


def test_without_a_place_a_stage_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / ".checkpoints").write_text("a file")
    with stage_checkpoints("pretrain", {}, []) as stage:
        assert stage.training("pretrain") is stage.run_file is None
    assert "no checkpoints can be saved" in capsys.readouterr().err


def test_resuming_can_be_turned_off(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_RESUME", "off")
    with stage_checkpoints("pretrain", {}, []) as stage:
        assert stage.training("pretrain") is None
    assert not (project / ".checkpoints").exists()


def test_the_folder_says_where_the_stage_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in ("one", "another"):
        here = runtime.environment() | {"cpu": cpu}
        monkeypatch.setattr(runtime, "environment", lambda here=here: here)
        with stage_checkpoints("pretrain", {}, []) as stage:
            assert stage.folder is not None
            stage.training("pretrain").save(1, tensors(1), {})  # type: ignore[union-attr]
        assert json.loads((stage.folder.scratch / "environment.json").read_text()) == here


# -- The key ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.FunctionType]:
    """The key of a stage with an input, a folder of inputs and a module of its own."""
    (project / "folder" / "sub").mkdir(parents=True)
    for name in ("input.bin", "folder/a", "folder/sub/b", "module.py"):
        (project / name).write_text(name)
    real = stage_code.stage_files
    monkeypatch.setattr(stage_code, "stage_files", lambda stage: (*real(stage), project / "module.py"))
    n_threads = torch.get_num_threads()

    def made(params: dict | None = None, stage: str = "pretrain") -> str:
        known = fingerprint(stage, params or {"seed": 1, "lr": 0.1}, [Path("input.bin"), Path("folder")])
        assert json.loads(json.dumps(known)) == known  # so that key.json can be compared
        return digest(known)

    yield made  # type: ignore[misc]
    torch.set_num_threads(n_threads)


def changed_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = runtime.environment()
    assert name in real
    monkeypatch.setattr(runtime, "environment", lambda: real | {name: "another"})


CHANGES = {
    "an input": lambda monkeypatch: Path("input.bin").write_text("x"),
    "an input in a folder": lambda monkeypatch: Path("folder/sub/b").write_text("x"),
    "one more input": lambda monkeypatch: Path("folder/c").write_text("x"),
    "a renamed input": lambda monkeypatch: Path("folder/a").rename("folder/z"),
    "the code": lambda monkeypatch: Path("module.py").write_text("x"),
    "a library": lambda monkeypatch: changed_environment(monkeypatch, "numpy"),
    "the threads": lambda monkeypatch: torch.set_num_threads(torch.get_num_threads() + 1),
    "Python": lambda monkeypatch: changed_environment(monkeypatch, "python"),
    "torch": lambda monkeypatch: changed_environment(monkeypatch, "torch"),
    "the CPU's capability": lambda monkeypatch: changed_environment(monkeypatch, "cpu_capability"),
    "the device": lambda monkeypatch: changed_environment(monkeypatch, "device"),
    "the number of processes": lambda monkeypatch: monkeypatch.setenv("WORLD_SIZE", "2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_covers(key, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    before = key()
    assert key() == before
    CHANGES[change](monkeypatch)
    assert key() != before


@pytest.mark.parametrize("is_portable", [True, False])
def test_a_portable_key_is_the_same_on_every_cpu(key, monkeypatch: pytest.MonkeyPatch, is_portable: bool) -> None:
    monkeypatch.setattr(numerics, "is_portable", lambda: is_portable)
    environment = fingerprint("pretrain", {}, [])["environment"]
    assert {"python", "torch", "numpy", "device"} <= environment.keys()
    of_the_cpu = {"cpu", "threads", "cpu_capability"}
    assert environment.keys() & of_the_cpu == (set() if is_portable else of_the_cpu)
    before = key()
    for name in of_the_cpu:
        with monkeypatch.context() as patch:
            changed_environment(patch, name)
            assert (key() == before) == is_portable, name
    with monkeypatch.context() as patch:
        changed_environment(patch, "numpy")
        assert key() != before


def test_the_key_covers_params_and_stage(key) -> None:
    assert len({key(), key({"seed": 2, "lr": 0.1}), key({"seed": 1, "lr": 0.2}), key(stage="finetune-instruct")}) == 4


def test_the_key_covers_the_code_that_decides_the_outputs(project: Path) -> None:
    code = fingerprint("pretrain", {}, [])["code"]
    assert list(code) == [path.as_posix() for path in stage_code.stage_files("pretrain")]
    assert code["gpt2core/training/trainer.py"] == files.sha256(ROOT / "gpt2core/training/trainer.py")


@pytest.mark.parametrize("path", ["gpt2core/tracking/plots/scores.py", "gpt2core/evaluation/judges/questions.py"])
def test_a_change_of_an_observer_or_of_another_stage_keeps_the_key(project: Path, path: str) -> None:
    assert path not in fingerprint("pretrain", {}, [])["code"]


def test_a_stage_says_why_it_starts_anew(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(params: dict) -> str:
        with pytest.raises(ZeroDivisionError), stage_checkpoints("pretrain", params, []) as stage:
            stage.training("a").save(3, tensors(3), {})  # type: ignore[union-attr]
            raise ZeroDivisionError
        return capsys.readouterr().err

    assert run({"lr": 1}) == ""
    assert run({"lr": 2}) == "", "another experiment is none that was stopped"
    changed_environment(monkeypatch, "cpu_capability")
    assert re.fullmatch(r"starts at step 0: .*pretrain-\w+ differ in cpu_capability\n", run({"lr": 1}))


# -- Two processes ---------------------------------------------------------------------------------------------------

STAGE = """
import sys, time, torch
from pathlib import Path
from gpt2core.log import log_to_stderr
from gpt2core.training.checkpoints import stage_checkpoints

log_to_stderr()
name, last = sys.argv[1], int(sys.argv[2])
with stage_checkpoints("pretrain", {}, []) as stage:
    states = stage.training("pretrain")
    state = states.newest()
    print(name, "from", state.step if state else 0, flush=True)
    for step in range(state.step if state else 0, last):
        states.save(step + 1, {"by": torch.tensor(ord(name))}, {})
        time.sleep(0.1)
    print(name, "to", last, flush=True)
    sys.stdin.readline() if name == "a" else None
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True])
def test_the_second_process_waits_and_goes_on_from_where_the_first_came_to(project: Path, is_killed: bool) -> None:
    first = start(STAGE, "a", 10)
    assert first.stdout and first.stderr
    assert first.stdout.readline() == "a from 0\n"
    second = start(STAGE, "b", 20)
    assert second.stdout and second.stderr
    said = second.stderr.readline()
    assert said.startswith(f"process {first.pid} is already running this training; waiting until it ends")
    if is_killed:
        first.kill()
    first.communicate(timeout=30)  # closes its input, too
    out, _ = second.communicate(timeout=30)
    start_step, last = (int(line.split()[-1]) for line in out.splitlines())
    assert last == 20
    assert (start_step > 0) if is_killed else (start_step == 10)


@pytest.mark.slow
def test_one_that_waits_can_be_stopped(project: Path) -> None:
    first = start(STAGE, "a", 1)
    assert first.stdout
    first.stdout.readline()
    second = start(STAGE, "b", 2)
    assert second.stderr
    second.stderr.readline()
    second.send_signal(signal.SIGINT)
    assert second.wait(timeout=10) != 0
    first.communicate(timeout=30)
    assert first.returncode == 0


# -- Old states ------------------------------------------------------------------------------------------------------


def folder_of_states(checkpoints: Path, number: int, age_days: float, n_bytes: int, finished: bool = False) -> Path:
    folder = checkpoints / f"pretrain-{number:016x}"
    (folder / "pretrain").mkdir(parents=True)
    for path in [folder / "pretrain" / "x.safetensors", *([folder / "finished"] if finished else [])]:
        path.write_bytes(bytes(n_bytes if path.suffix else 0))
        os.utime(path, (time.time() - age_days * DAY_S,) * 2)
    return folder


def test_old_states_are_pruned_by_age(tmp_path: Path) -> None:
    ages = {0: (20, False), 1: (13, False), 2: (15, False), 3: (0.5, True), 4: (1.5, True), 5: (1.5, False)}
    made = {n: folder_of_states(tmp_path, n, age, 10, finished) for n, (age, finished) in ages.items()}
    for other in ("tokenize", "downloads", "pretrain-own"):
        (tmp_path / other).mkdir()
        os.utime(tmp_path / other, (0, 0))
    (made[2].with_name(f"{made[2].name}.lock")).touch()
    prune(LocalFolder(tmp_path), keep=LocalFolder(tmp_path, made[0].name))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {made[n].name for n in (0, 1, 3, 5)} | {"tokenize", "downloads", "pretrain-own"}


def test_old_states_are_pruned_by_size_finished_and_oldest_first(tmp_path: Path) -> None:
    ages = [(9, False), (3, False), (0.1, True), (0.2, True), (2.5, False), (1, False)]
    made = [folder_of_states(tmp_path, n, age, 100, finished) for n, (age, finished) in enumerate(ages)]
    for max_bytes, left in {600: (0, 1, 2, 3, 4, 5), 599: (0, 1, 2, 4, 5), 350: (0, 4, 5), 0: (0, 5)}.items():
        prune(LocalFolder(tmp_path), keep=LocalFolder(tmp_path, made[0].name), max_bytes=max_bytes)
        assert sorted(tmp_path.iterdir()) == [made[n] for n in left]


def test_states_that_a_process_has_are_not_pruned(project: Path) -> None:
    with stage_checkpoints("pretrain", {}, []) as stage:
        stage.training("pretrain").save(1, tensors(1), {})  # type: ignore[union-attr]
        prune(LocalFolder(project / ".checkpoints"), keep=LocalFolder(project), max_bytes=0)
        assert stage.training("pretrain").newest() is not None  # type: ignore[union-attr]
    prune(LocalFolder(project / ".checkpoints"), keep=LocalFolder(project), max_bytes=0)
    assert folders(project) == []
