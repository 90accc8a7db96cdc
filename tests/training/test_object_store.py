"""Checkpoints on an S3 server: found by another machine, reserved by one, and never the end of a training."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gpt2core.errors import UserError
from gpt2core.training import lease, storage
from gpt2core.training.checkpoints import CheckpointManager, StageCheckpoints, prune, stage_checkpoints
from gpt2core.training.object_store import ObjectStore, checkpoint_root
from gpt2core.training.task import Step
from tests.training.conftest import SECRET
from tests.training.test_checkpoints import DAY_S, changed_environment, tensors
from tests.training.test_resume import MAX_STEPS, Training

ROOT = Path(__file__).parents[2]


def on_machine(monkeypatch: pytest.MonkeyPatch, folder: Path, checkpoints: str) -> None:
    """Continue on another machine: its project is another folder, and it knows the URL."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setenv("GPT2CORE_CHECKPOINTS", checkpoints)


def stop_after(step: int, params: dict[str, Any] | None = None) -> StageCheckpoints:
    """Save a checkpoint, and end with an error."""
    with pytest.raises(ZeroDivisionError), stage_checkpoints("pretrain", params or {}, []) as stage:
        training = stage.training("a")
        assert training is not None and training.save(step, tensors(step), {"step": step})
        raise ZeroDivisionError
    return stage


def newest_step(params: dict[str, Any] | None = None) -> int:
    """The step that a stage would continue from; it ends with an error."""
    found = []
    with pytest.raises(ZeroDivisionError), stage_checkpoints("pretrain", params or {}, []) as stage:
        found.append(stage.training("a").newest())  # type: ignore[union-attr]
        raise ZeroDivisionError
    return found[0].step if found[0] else 0


def test_a_checkpoint_comes_back_to_the_bit_and_two_are_kept(s3: str) -> None:
    manager = CheckpointManager(ObjectStore.open(s3, "training"))
    saved = {"a": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "c": torch.empty(0, 3)}
    for step in (5, 10, 20):
        assert manager.save(step, saved, {"text": f"naïve {step}"})
    names = sorted(manager.folder.entries())
    assert [int(name.split(".")[0]) for name in names] == [10, 20]
    checkpoint = CheckpointManager(ObjectStore.open(s3, "training")).newest()
    assert checkpoint is not None and abs(checkpoint.saved_s - time.time()) < DAY_S
    assert (checkpoint.step, checkpoint.extra_state) == (20, {"text": "naïve 20"})
    assert checkpoint.tensors.keys() == saved.keys()
    for name, tensor in saved.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype and torch.equal(checkpoint.tensors[name], tensor)


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    manager = CheckpointManager(ObjectStore.open(s3, "training"))
    for step in (5, 10):
        manager.save(step, tensors(step), {})
    folder = ObjectStore.open(s3, "training")
    name = max(folder.entries())
    folder._fs.pipe_file(f"{folder}/{name}", folder.read(name)[:-1])
    assert manager.newest().step == 5  # type: ignore[union-attr]
    assert re.search("checkpoint of step 10 is damaged .*; it is not used", capsys.readouterr().err)
    assert len(folder.entries()) == 1


def test_another_machine_finds_the_checkpoint(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_machine(monkeypatch, tmp_path / "first", s3)
    stage = stop_after(3)
    assert [path for path in (tmp_path / "first").rglob("*") if path.is_file() and path.name != "owner"] == []
    assert re.fullmatch(rf"{s3}/pretrain-[0-9a-f]{{16}}", str(stage.folder))
    on_machine(monkeypatch, tmp_path / "second", s3)
    assert newest_step({"lr": 2}) == 0, "other params are another training"
    assert capsys.readouterr().err == ""
    with stage_checkpoints("pretrain", {}, []) as stage:
        assert stage.training("a").newest().step == 3  # type: ignore[union-attr]
    assert stage.folder is not None and "finished" in stage.folder.entries()


def test_the_run_of_mlflow_is_continued_on_another_machine(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, tmp_path / "first", s3)
    with pytest.raises(ZeroDivisionError), stage_checkpoints("pretrain", {}, []) as stage:
        assert stage.run_file is not None
        stage.run_file.parent.mkdir(parents=True, exist_ok=True)
        stage.run_file.write_text('{"run_id": "7"}')  # as tracking does
        stage.training("a").save(1, tensors(1), {})  # type: ignore[union-attr]
        raise ZeroDivisionError
    on_machine(monkeypatch, tmp_path / "second", s3)
    with stage_checkpoints("pretrain", {}, []) as stage:
        assert stage.run_file is not None and json.loads(stage.run_file.read_text()) == {"run_id": "7"}
        stage.run_file.unlink()  # as tracking does at the end
    assert stage.folder is not None and "mlflow.json" not in stage.folder.entries()


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_with_native_numerics_another_machine_warns_and_continues(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "shared").mkdir()
    checkpoints = request.getfixturevalue("s3") if kind == "s3" else str(tmp_path / "shared")
    on_machine(monkeypatch, tmp_path / "first", checkpoints)
    stop_after(3)
    assert newest_step() == 3
    assert capsys.readouterr().err == ""
    on_machine(monkeypatch, tmp_path / "second", checkpoints)
    changed_environment(monkeypatch, "cpu_capability")
    assert newest_step() == 3
    said = capsys.readouterr().err
    assert re.search("are of another machine, with a different cpu_capability; this one continues, but the last", said)
    changed_environment(monkeypatch, "numpy")
    assert newest_step() == 0
    assert "differ in numpy" in capsys.readouterr().err


def test_another_number_of_processes_is_refused_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    stop_after(3, {"pretrain": {"launcher": "torchrun --nproc-per-node=2"}})
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert newest_step({"pretrain": {"launcher": "python"}}) == 0
    assert re.search("starts at step 0: .* differ in launcher, world_size", capsys.readouterr().err)


# -- Two writers -----------------------------------------------------------------------------------------------------


def test_of_two_writers_one_stops_and_writes_nothing_more(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, tmp_path / "first", s3)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="another process has taken over this training"):
        patch.setattr(lease, "LEASE_S", -10.0)  # as if this process had been suspended for long
        with stage_checkpoints("pretrain", {}, []) as first:
            ours = first.training("a")
            assert ours is not None and ours.save(1, tensors(1), {})
            on_machine(patch, tmp_path / "second", s3)
            patch.setattr(lease, "LEASE_S", 180.0)
            with stage_checkpoints("pretrain", {}, []) as second:
                theirs = second.training("a")
                assert theirs is not None and theirs.newest().step == 1  # type: ignore[union-attr]
                assert theirs.save(2, tensors(2), {})
                before = theirs.folder.entries()
                assert second.folder is not None and not second.folder.is_lost
                try:
                    ours.save(3, tensors(3), {})
                finally:
                    assert first.folder is not None and first.folder.is_lost
                    assert theirs.folder.entries() == before
                    assert theirs.save(4, tensors(4), {})
    assert newest_step() == 4, "the process that stopped has removed the other's checkpoints"


def test_a_training_that_lost_its_lease_stops_at_the_next_step(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that renews the lease notices it; the next checkpoint would be due in a minute."""
    on_machine(monkeypatch, tmp_path, s3)
    monkeypatch.delenv("GPT2CORE_SAVE_INTERVAL_S", raising=False)
    steps: list[int] = []

    def on_step(done: Step) -> None:
        steps.append(done.step)
        if done.step == 3:
            assert isinstance(stage.folder, ObjectStore) and stage.folder._lease
            stage.folder._lease.is_lost = True

    with pytest.raises(UserError, match="has taken over"), stage_checkpoints("pretrain", {}, []) as stage:
        Training(stage.training("pretrain")).run(on_step)
    assert steps == [1, 2, 3] or steps == [1, 2, 3, 4]
    assert stage.folder is not None and not [name for name in stage.folder.entries() if name.startswith("pretrain/")]


def test_one_that_waits_on_the_same_machine_leaves_the_files_of_the_first_alone(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both write temporary files into the same folder."""
    on_machine(monkeypatch, tmp_path, s3)
    with stage_checkpoints("pretrain", {}, []) as stage:
        assert stage.folder is not None
        temporary = stage.folder.temporary
        temporary.write_bytes(b"what the first process is saving")
        monkeypatch.setattr(storage, "PROCESS", "second")
        second = ObjectStore.open(s3, stage.folder.location[1])
        assert not second.acquire(wait=False)
        assert second.read_json("holder.json")["pid"] == os.getpid()
        assert second.temporary != temporary
        assert list(temporary.parent.iterdir()) == [temporary]
        assert temporary.read_bytes() == b"what the first process is saving"


def start(out: Path, folder: Path, stop_step: int) -> subprocess.Popen[str]:
    folder.mkdir()
    command = [sys.executable, "-m", "tests.training.store_worker", str(out), str(stop_step)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"DVC_ROOT": str(folder), "OMP_NUM_THREADS": "1", "GPT2CORE_SAVE_INTERVAL_S": "0"},
    )  # fmt: skip


@pytest.mark.slow
def test_killed_it_is_continued_by_another_machine_with_the_same_bytes(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine waits while the first one lives."""
    monkeypatch.setenv("GPT2CORE_CHECKPOINTS", s3)
    first = start(tmp_path / "first.safetensors", tmp_path / "first", stop_step=6)
    assert first.stdout and first.stdout.readline() == "stopped\n"
    second = start(tmp_path / "second.safetensors", tmp_path / "second", stop_step=0)
    try:
        assert second.stderr
        said = second.stderr.readline()
        assert said.startswith(f"process {first.pid} is already running this training; waiting until it ends, or until")
        first.kill()
        first.communicate(timeout=60)
        numbers = (name for name in ObjectStore.open(s3).entries() if re.search(r"\.lease/\d+$", name))
        name = max(numbers, key=lambda name: int(name.rpartition("/")[2]))
        record = json.loads(ObjectStore.open(s3).read(name))
        ObjectStore.open(s3)._fs.pipe_file(f"{s3}/{name}", json.dumps(record | {"seconds": -10}).encode())  # it expires
        _, said = second.communicate(timeout=300)
    finally:
        second.kill()
    assert second.returncode == 0, said
    assert re.search(rf"pretrain: resumed at step 5 of {MAX_STEPS}", said)
    assert not (tmp_path / "first.safetensors").exists()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        never = Training(None).run().weights()
    finally:
        torch.set_num_threads(n_threads)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "second.safetensors")["weights"], never)


# -- Errors ----------------------------------------------------------------------------------------------------------


def test_a_store_that_fails_is_one_warning_without_secrets(
    s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = CheckpointManager(ObjectStore.open(s3, "training"))
    assert manager.save(1, tensors(1), {})

    def fail(*_: object) -> None:
        raise RuntimeError(f"refused, with the key {SECRET}")

    with monkeypatch.context() as patch:
        patch.setattr(manager.folder._fs, "put_file", fail)  # type: ignore[attr-defined]
        assert not manager.save(2, tensors(2), {})
        assert not manager.save(3, tensors(3), {})
    said = capsys.readouterr().err
    assert said.startswith(f"warning: step 2: the checkpoint was not saved ({s3}/training: refused, with the key ***)")
    assert said.count("\n") == 1
    assert manager.save(4, tensors(4), {})
    with monkeypatch.context() as patch:
        patch.setattr(manager.folder._fs, "get_file", fail)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="the checkpoint of step 4 cannot be read, run again later"):
            manager.newest()
    assert manager.newest().step == 4, "it was taken for damaged"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("s3://key:s3cr3t@bucket/path", "contains a user name or password; set credentials in variables of their own"),
        ("s3://bucket/path?X-Amz-Signature=s3cr3t", "contains the query parameter 'X-Amz-Signature'"),
        ("no/such/folder", "no/such/folder is not a folder; create it"),
        ("s4://bucket/path", "Protocol not known: s4; allowed: a folder, or a URL such as s3://BUCKET/PATH"),
        ("s3://", "s3://: names no bucket; allowed: a folder, or a URL such as s3://BUCKET/PATH"),
        ("s3:/bucket/path", "s3:/bucket/path: names no bucket"),
        ("https://127.0.0.1/path", "https:// cannot lock a training"),
        ("memory://path", "memory:// cannot lock a training, because it creates no object exclusively"),
    ],
)
def test_a_place_that_cannot_be_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    on_machine(monkeypatch, tmp_path, value)
    with pytest.raises(UserError, match=re.escape(message)) as error, stage_checkpoints("pretrain", {}, []):
        pass
    assert "s3cr3t" not in str(error.value)


def test_a_bucket_that_is_missing_is_an_error(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(monkeypatch, tmp_path, "s3://no-such-bucket/path")
    with (
        pytest.raises(
            UserError, match="s3://no-such-bucket/path: no checkpoints can be saved .*bucket does not exist"
        ) as error,
        stage_checkpoints("pretrain", {}, []),
    ):
        pass
    assert str(error.value).count("no-such-bucket/path") == 1
    assert not list(tmp_path.rglob("*.lock"))


def test_without_s3fs_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    on_machine(monkeypatch, tmp_path, "s3://bucket/path")
    with pytest.raises(UserError, match=re.escape("pip install 'gpt2core[s3]'")):
        checkpoint_root()


# -- Old checkpoints -------------------------------------------------------------------------------------------------


def test_old_checkpoints_are_removed_unless_a_process_has_them(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 1e9)  # this test may take long
    on_machine(monkeypatch, tmp_path / "first", s3)
    old = stop_after(1, {"lr": 1}).folder
    assert old is not None
    with stage_checkpoints("pretrain", {"lr": 2}, []) as running:
        running.training("a").save(1, tensors(1), {})  # type: ignore[union-attr]
        on_machine(monkeypatch, tmp_path / "second", s3)
        root = ObjectStore.open(s3)
        prune(root, keep=root, max_bytes=0)
        assert old.entries().keys() > {"key.json"}, "in a folder that others share, only the age counts"
        in_15_days_s = time.time() + 15 * DAY_S
        monkeypatch.setattr(time, "time", lambda: in_15_days_s)
        prune(root, keep=root)
        assert running.folder is not None and "key.json" in running.folder.entries()
        assert [name for name in root.entries() if name.startswith(str(old.location[1]))] == []


def test_a_relative_folder_is_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("GPT2CORE_CHECKPOINTS", "shared")
    assert checkpoint_root().location == (str((tmp_path / "shared").resolve()), "")
