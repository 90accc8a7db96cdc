"""States of commits: kept from one command to the next, with a number of processes that does not grow."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpt2core.tracking import revisions, sync
from gpt2core.tracking.commit_states import FILE, CommitStates, object_reader
from gpt2core.tracking.seeds import seed_groups

N = 12


def files_of(seed: int) -> dict[str, str]:
    metrics = json.dumps({"val_loss": 1 + seed / 100})
    md5 = hashlib.md5(metrics.encode()).hexdigest()
    lock = (
        f"schema: '2.0'\nstages:\n  pretrain:\n    cmd: python\n    deps:\n    - path: a\n      md5: {seed:032d}\n"
        f"    params:\n      params.yaml:\n        seed: {seed}\n"
        f"    outs:\n    - path: metrics/pretrain.json\n      md5: {md5}\n"
    )
    return {"params.yaml": f"seed: {seed}\nlr: 1e-05\n", "dvc.lock": lock, "metrics/pretrain.json": metrics}


def git(root: Path, *arguments: str, **options: Any) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, **options)
    return done.stdout.decode().strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository whose project is a folder in it, with experiments as DVC makes them."""
    project = tmp_path / "project"
    (project / "metrics").mkdir(parents=True)
    (project / ".dvc").mkdir()
    for name, content in files_of(0).items():
        (project / name).write_text(content)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "baseline")
    baseline = git(tmp_path, "rev-parse", "HEAD")
    stream = b""
    for seed in range(1, N + 1):
        ref = f"refs/exps/{baseline[:2]}/{baseline[2:]}/seed-{seed}"
        stream += f"commit {ref}\ncommitter t <t@localhost> {1_700_000_000 + seed} +0000\ndata 0\n".encode()
        stream += f"from {baseline}\n".encode()
        for name, content in files_of(seed).items():
            stream += f"M 100644 inline project/{name}\ndata {len(content)}\n{content}\n".encode()
    git(tmp_path, "fast-import", "--quiet", input=stream)
    return project


def summary(found: list[revisions.Revision]) -> list[Any]:
    names = [(r.name.split()[0], r.state.params, r.state.table, r.key, r.baseline, r.ran) for r in found]
    return sorted(names, key=str)


def test_kept_states_are_those_that_were_read(root: Path) -> None:
    first = revisions.select(root)
    assert (root / FILE).is_file()
    assert summary(revisions.select(root)) == summary(first)
    experiments = {revision.name: revision for revision in first if revision.key}
    assert len(experiments) == N
    for seed in range(1, N + 1):
        found = experiments[f"seed-{seed}"]
        assert found.state.params == {"seed": seed, "lr": 1e-05}
        assert found.state.table == {"pretrain.val_loss": 1 + seed / 100}
        assert (found.at_ms, found.ran) == ((1_700_000_000 + seed) * 1000, {"pretrain"})
        assert found.read("metrics/pretrain.json") == files_of(seed)["metrics/pretrain.json"].encode()
        assert found.read("metrics/none.json") is None
    (group,) = seed_groups(revisions.select(root))
    assert group.seeds == list(range(N + 1))


def test_reading_them_again_starts_no_process_for_each(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revisions.select(root)
    n_started = 0
    start = subprocess.Popen

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal n_started
        n_started += 1
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", counted)
    monkeypatch.setattr("gpt2core.tracking.state._yaml", lambda content: pytest.fail("a file is read again"))
    monkeypatch.setattr(revisions, "_workspace", lambda root: None)
    object_reader.cache_clear()
    assert len(revisions.select(root)) == N + 1  # with HEAD
    assert n_started < N


def test_a_damaged_file_or_other_code_costs_only_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = summary(revisions.select(root))
    states = CommitStates(root)
    states._code = "other"
    assert not states._query("SELECT state FROM states WHERE code = ?", states._code)
    (root / FILE).write_bytes(b"no database " * 1000)
    assert summary(revisions.select(root)) == expected
    (root / FILE).unlink()
    (root / FILE).mkdir()
    assert summary(revisions.select(root)) == expected


@pytest.mark.slow
def test_what_mlflow_has_is_not_asked_for_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was deleted comes back if its experiment is named; all of them in a new store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))
    first = {shown.name.split()[0]: shown for shown in sync.sync(root)}
    assert all(shown.done for shown in first.values())
    asked: list[str] = []
    complete = sync._sync

    def noted(writer: Any, project: Path, revision: Any, notes: Any) -> Any:
        asked.append(revision.name.split()[0])
        return complete(writer, project, revision, notes)

    monkeypatch.setattr(sync, "_sync", noted)
    again = {shown.name.split()[0]: shown for shown in sync.sync(root)}
    assert asked == ["workspace"]
    assert {name: shown.run_id for name, shown in again.items()} == {n: shown.run_id for n, shown in first.items()}
    assert not any(shown.done for shown in again.values())

    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db").delete_run(first["seed-3"].run_id)
    assert not any(shown.done for shown in sync.sync(root))
    (shown,) = sync.sync(root, ["seed-3"])
    assert shown.done and shown.run_id != first["seed-3"].run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/other.db")
    assert all(shown.done for shown in sync.sync(root))
