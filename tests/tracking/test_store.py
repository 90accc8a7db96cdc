"""Stores that cannot be opened: one warning within seconds, and a remedy that works."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2core.doctor import stores
from gpt2core.errors import UserError
from gpt2core.params import load_params
from gpt2core.tracking import pending, store, track_stage

PARAMS = Path(__file__).parents[2] / "params.yaml"


def is_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def is_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def is_text(path: Path) -> None:
    path.write_text("no database" * 1000)


def is_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def execute(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()


def is_old(path: Path) -> None:
    execute(path, "UPDATE alembic_version SET version_num = '451aebb31d03'")


def is_new(path: Path) -> None:
    execute(path, "UPDATE alembic_version SET version_num = 'f00f00f00f00'")


def is_deleted(path: Path) -> None:
    execute(path, "UPDATE experiments SET lifecycle_stage = 'deleted'")


def is_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere" / "mlflow.db")


@pytest.fixture
def database(root: Path) -> Path:
    """A database of one experiment, in the project's root."""
    store.open_store(root)
    return root / store.DATABASE


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (is_folder, ["not a file", "mv "]),
        (is_pipe, ["not a file", "mv "]),
        (is_dangling, ["not a file", "mv "]),
        (is_text, ["not a sound database", "mv "]),
        (is_cut, ["not a sound database", "mv "]),
        (is_old, ["mlflow db upgrade sqlite:///"]),
        (is_new, ["another version", "f00f00f00f00"]),
        (is_deleted, ["deleted", "mlflow experiments restore --experiment-id 1"]),
    ],
)
def test_what_is_wrong_is_said_at_once(
    root: Path, database: Path, spoil: Callable[[Path], None], facts: list[str]
) -> None:
    spoil(database)
    start_s = time.monotonic()
    with pytest.raises(UserError) as error:
        store.open_store(root)
    assert time.monotonic() - start_s < 30  # MLflow tries for minutes
    assert all(fact in str(error.value) for fact in facts), str(error.value)
    (finding,) = stores.mlflow(root)
    assert finding.level == "problem"
    assert facts[-1] in finding.what + finding.remedy


def test_a_deleted_experiment_is_restored_by_the_command_that_is_named(root: Path, database: Path) -> None:
    is_deleted(database)
    with pytest.raises(UserError) as error:
        store.open_store(root)
    command = str(error.value).partition("restore it: ")[2].replace("mlflow ", f"{sys.executable} -m mlflow ", 1)
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=120)
    client, experiment_id = store.open_store(root)
    client.create_run(experiment_id)


def test_moving_a_damaged_database_away_works(root: Path, database: Path) -> None:
    is_text(database)
    with pytest.raises(UserError) as error:
        store.open_store(root)
    command = str(error.value).partition("(mv ")[2].partition(")")[0]
    subprocess.run(["bash", "-c", f"mv {command}"], check=True)
    script = "import pathlib; from gpt2core.tracking import store; store.open_store(pathlib.Path.cwd())"
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, timeout=120)  # this process keeps the old one


@pytest.mark.parametrize("answers", [False, True], ids=["hangs", "is away"])
def test_a_server_that_does_not_answer(root: Path, monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    monkeypatch.setattr(store, "CHECK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if answers:
            listener.close()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:planted@127.0.0.1:{port}")
        with pytest.raises(UserError, match="does not answer") as error:
            store.open_store(root)
        assert "planted" not in str(error.value)
        (finding,) = stores.mlflow(root)
        assert (finding.level, "planted" in finding.what + finding.remedy) == ("warning", False)


class Dripping(http.server.BaseHTTPRequestHandler):
    """A server that has MLflow's version, and answers all else with a byte now and then."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                self.wfile.write(b" ")
                if self.path != "/version":
                    time.sleep(0.05)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_server_that_drips_is_left_in_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "REQUEST_TIMEOUT_S", 1.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:planted@127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match="did not complete an answer in 1 s") as error:
            store.open_store(root)
        server.shutdown()
    assert "planted" not in str(error.value)


def test_stages_of_one_pipeline_run_warn_once(
    root: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    is_folder(database)
    monkeypatch.setenv("DVC_EXP_NAME", "one-pipeline")
    (root / "metrics").mkdir()
    shutil.copy(PARAMS, root)
    (root / "dvc.lock").write_text("stages: {}\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    for stage in ("tokenize", "pretrain", "convert"):
        (root / f"metrics/{stage}.json").write_text("{}")
        with track_stage(stage, load_params(PARAMS)) as run:
            run.finish({"val_loss": 1.0})
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if "without MLflow" in line]
    assert "not a file" in warning
    (note,) = pending.read(root)
    assert note.stages == ["tokenize", "pretrain", "convert"]


KILLED_WRITER = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN EXCLUSIVE")
database.execute("UPDATE texts SET text = 'half-written'")
database.execute("PRAGMA cache_spill = 1")
os._exit(9)
"""


def test_what_a_killed_writer_left_is_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a project # 1?" / "mlflow.db"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        newest = next(version for version, is_newest in store._schema_versions().items() if is_newest)
        database.execute("INSERT INTO alembic_version VALUES (?)", [newest])
        database.execute("CREATE TABLE texts (text)")
        database.executemany("INSERT INTO texts VALUES (?)", [("x" * 900,)] * 2000)
    subprocess.run([sys.executable, "-c", KILLED_WRITER, path])
    assert path.with_name("mlflow.db-journal").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store.check(path.parent)
    with contextlib.closing(store.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM texts WHERE text = 'half-written'").fetchone() == (0,)
