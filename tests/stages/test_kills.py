"""Stages that do not train, killed: what they write is whole or not there, and the next run ends as if nothing was.

A process imports the stage once and forks a child for each run. The child counts what it does to files (Python's audit
events) and ends by SIGKILL just before the n-th: every state of the disk that a kill can leave is between two of these.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML

from gpt2core import files
from gpt2core.params import read_values

ROOT = Path(__file__).parents[2]
MAX_KILLS = 30  # of a stage; drawn at random where it does more to files
DRIVER = """
import importlib, os, signal, sys
from gpt2core import numerics
numerics.prepare("portable")
main = importlib.import_module(sys.argv[1]).main
sys.argv = sys.argv[1:]
from gpt2core.runtime import stage_main
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}

def run(kill_at, told):
    count = 0
    def hook(event, args):
        nonlocal count
        if event in CHANGES or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    try:
        stage_main(main)
    finally:
        os.write(told, b"%d" % count)

for line in sys.stdin:
    read, told = os.pipe()
    if not (child := os.fork()):
        os.dup2(2, 1)  # what it prints is no answer
        try:
            run(int(line), told)
        except SystemExit as end:
            sys.stderr.write(f"{end.code}\\\\n")
            os._exit(1)
        os._exit(0)
    os.close(told)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, os.read(read, 99).decode() or 0, flush=True)
    os.close(read)
""".replace("\\\\", "\\")


class Killable:
    """A stage in a folder with params.yaml, ready to be run and killed."""

    def __init__(self, folder: Path, module: str, *arguments: str, **env: str):
        self.folder = folder
        private = ("DVC_", "GPT2CORE_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(private)}
        settings = {"PYTHONPATH": str(ROOT), "GPT2CORE_TRACKING": "off", "GPT2CORE_PROCESSES": "1"}
        self._log = (folder.parent / f"{folder.name}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, module, *arguments],
            cwd=folder, env=clean | settings | env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def run(self, kill_at: int = 0) -> tuple[int, int]:
        """Run it, to be killed before its n-th change of a file (0: not at all): exit code and number of changes."""
        self._process.stdin.write(f"{kill_at}\n")
        self._process.stdin.flush()
        code, changes = map(int, self._process.stdout.readline().split())
        return code, changes

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


def content(path: Path) -> dict[str, str] | None:
    """Each file of a folder, or the file itself, with its hash; None where there is none."""
    if not path.exists():
        return None
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {p.relative_to(path).as_posix(): files.sha256(p) for p in found if p.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*.tmp")]


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class Stage(NamedTuple):
    arguments: tuple[str, ...]
    outs: tuple[str, ...]


STAGES = {
    "download_data": Stage((), ("data/raw",)),
    "tokenize": Stage((), ("data/tokens", "metrics/tokenize.json")),
    "fetch_openai_weights": Stage(("tiny",), ("data/openai/tiny",)),
    "convert": Stage(("tiny",), ("models/openai/tiny",)),
    "llm_judge_eval": Stage((), ("metrics/plots/judge_scores.csv", "metrics/llm_judge_eval.json")),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project with the inputs of all these stages."""
    folder = tmp_path_factory.mktemp("project")
    yaml = YAML()
    params = read_values(ROOT / "profiles/tiny.yaml")
    params["data"] |= {"corpus": "own/tales.txt", "classification": "own/sms.tsv", "instructions": "own/entries.json"}
    params["tokenizer"] |= {"kind": "bpe", "vocab_size": 300}
    params["judge"]["bootstrap_samples"] = 20
    yaml.dump(params, folder / "params.yaml")
    own = folder / "data/own"
    own.mkdir(parents=True)
    tales = [f"Tale {n}. Mara took {n} lamps to the harbour, and nobody saw it." for n in range(200)]
    (own / "tales.txt").write_text("\n<|endoftext|>\n".join(tales))
    (own / "sms.tsv").write_text("".join(f"{'spam' if n % 3 else 'ham'}\tmessage {n}\n" for n in range(60)))
    entries = [{"instruction": f"Name the number {n}.", "input": "", "output": f"It is {n}."} for n in range(40)]
    (own / "entries.json").write_text(json.dumps(entries))
    responses = folder / "data/responses"
    files.write_json(responses / "train.json", entries[:20])
    tested = [{**entry, "response": "It is 7.", "base_response": "?"} for entry in entries[20:]]
    files.write_json(responses / "test.json", tested)
    for name in ("download_data", "fetch_openai_weights"):
        stage = Killable(folder, f"stages.{name}", *STAGES[name].arguments)
        assert stage.run()[0] == 0, stage.log
        stage.close()
    return folder


@pytest.fixture
def scratch(project: Path, tmp_path: Path) -> Path:
    return shutil.copytree(project, tmp_path / "scratch")


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_leaves_nothing_half_written(scratch: Path, name: str) -> None:
    outs = [scratch / out for out in STAGES[name].outs]
    stage = Killable(scratch, f"stages.{name}", *STAGES[name].arguments)

    def run(kill_at: int = 0) -> tuple[int, int]:
        for out in outs:  # as DVC does
            remove(out)
        return stage.run(kill_at)

    try:
        run()
        remove(scratch / ".checkpoints")
        code, changes = run()
        assert code == 0, stage.log
        whole = [content(out) for out in outs]
        assert all(whole)
        assert not leftovers(scratch)
        seed = random.randrange(10**6)
        for point in random.Random(seed).sample(range(1, changes + 1), min(changes, MAX_KILLS)):
            told = f"seed {seed}, killed before change {point} of {changes}"
            remove(scratch / ".checkpoints")
            assert run(kill_at=point)[0] == -signal.SIGKILL, told
            for out, right in zip(outs, whole, strict=True):
                assert content(out) in (None, right), told
            assert run()[0] == 0, f"{told}: {stage.log}"
            assert [content(out) for out in outs] == whole, told
            assert not leftovers(scratch), told
    finally:
        stage.close()


# -- Downloads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(mirror: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of the mirror, without ranges, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path.lstrip("/"))
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=mirror)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}", asked
        http_server.shutdown()
        thread.join()


def test_a_killed_stage_keeps_finished_downloads(
    project: Path, scratch: Path, server: tuple[str, list[str]], mirror: Path
) -> None:
    """Killed later and later until it is through: no file that was whole is asked for again."""
    address, asked = server
    yaml = YAML()
    params = yaml.load(scratch / "params.yaml")
    params["data"] |= {
        "corpus": "the-verdict",
        "classification": "sms-spam-collection",
        "instructions": "instruction-data",
    }
    params["tokenizer"]["kind"] = "gpt2"
    yaml.dump(params, scratch / "params.yaml")
    out, downloads = scratch / "data/raw", scratch / ".checkpoints/downloads"
    stage = Killable(scratch, "stages.download_data", GPT2CORE_MIRROR=address)
    wanted = {"the-verdict/the-verdict.txt", "sms-spam-collection/SMSSpamCollection",
              "instruction-data/instruction-data.json", "gpt2-bpe/encoder.json", "gpt2-bpe/vocab.bpe"}  # fmt: skip
    sizes = {name.replace("/", "-"): (mirror / name).stat().st_size for name in wanted}
    try:
        point = 1
        while True:
            remove(out)
            code, _ = stage.run(kill_at=point)
            if code == 0:
                break
            assert code == -signal.SIGKILL, stage.log
            if out.exists():  # in its place: now the downloads are removed
                break
            whole = {name for name in wanted if (downloads / name).exists()}
            parts = {name for name in wanted for part in [downloads / f"{name.replace('/', '-')}.part"]
                     if part.exists() and part.stat().st_size == sizes[name.replace("/", "-")]}  # fmt: skip
            asked.clear()
            point += 3
            remove(out)
            stage.run(kill_at=point)
            assert not set(asked) & (whole | parts), point
        asked_before = list(asked)
        assert point > 30
        first = content(out)
    finally:
        stage.close()
    fresh = shutil.copytree(project, scratch.parent / "fresh")
    shutil.copy(scratch / "params.yaml", fresh)
    never_killed = Killable(fresh, "stages.download_data", GPT2CORE_MIRROR=address)
    assert never_killed.run()[0] == 0, never_killed.log
    never_killed.close()
    assert set(asked[len(asked_before) :]) == wanted
    assert content(fresh / "data/raw") == first


# -- A full disk -----------------------------------------------------------------------------------------------------

FULL = """
import resource, runpy, signal, sys
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # a write beyond it fails, as on a full disk
sys.argv[0] = "-m"  # as Python sets it while it looks for a module
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(scratch: Path, name: str) -> None:
    outs = [scratch / out for out in STAGES[name].outs]
    whole = [content(out) for out in outs]
    for out in outs:
        remove(out)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GPT2CORE_TRACKING": "off", "DVC_ROOT": str(scratch)}
    env.pop("GPT2CORE_MIRROR", None)
    command = [f"stages.{name}", *STAGES[name].arguments]
    run = functools.partial(
        subprocess.run, cwd=scratch, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    full = run([sys.executable, "-c", FULL.replace("sys.argv[1], run", "sys.argv.pop(1), run"), "200", *command])
    assert full.returncode == 1
    assert full.stderr.startswith("error: the disk is full: "), full.stderr
    assert len(full.stderr.splitlines()) == 1
    assert ".tmp" not in full.stderr  # it names what the person knows
    assert not any(map(content, outs))
    assert not leftovers(scratch)
    done = run([sys.executable, "-m", *command])
    assert done.returncode == 0, done.stderr
    if all(whole):
        assert [content(out) for out in outs] == whole
