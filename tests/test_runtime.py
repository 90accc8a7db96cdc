"""What `auto` chooses, and that it says why."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2core import runtime
from gpt2core.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("has_it", "name"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_bfloat16_where_the_cpu_computes_in_it(
    has_it: bool, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert runtime.training_dtype("auto") is getattr(torch, name)
    verb = "has" if has_it else "has no"
    assert capsys.readouterr().err == f"dtype: {name} (auto: this CPU {verb} bfloat16 arithmetic)\n"


def test_an_explicit_dtype_is_taken_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert runtime.training_dtype("bfloat16") is torch.bfloat16
    assert runtime.training_dtype("float32") is torch.float32
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("max_steps", "compiler", "chosen", "said"),
    [
        (100, "/bin/g++", False, "compile: false (auto: 100 steps do not repay a minute of compiling; 500 would)\n"),
        (500, "/bin/g++", True, "compile: true (auto: compiler /bin/g++)\n"),
        (500, None, False, "compile: false (auto: no C++ compiler; install g++)\n"),
    ],
)
def test_auto_compiles_where_it_can_and_where_it_pays(
    max_steps: int, compiler: str | None, chosen: bool, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: compiler if name == "g++" else None)
    assert runtime.should_compile("auto", max_steps) is chosen
    assert capsys.readouterr().err == said
    assert runtime.should_compile(True, max_steps) is True
    assert runtime.should_compile(False, max_steps) is False
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    """Standard error as a person sees it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "after_s", "rank", "shown"),
    [
        (Terminal(), 0, "0", True),
        (Terminal(), 60, "0", False),
        (Terminal(), 0, "1", False),
        (io.StringIO(), 0, "0", False),
    ],
    ids=["a terminal", "soon done", "not the first process", "a file"],
)
def test_progress_is_shown_on_a_terminal_for_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, after_s: float, rank: str, shown: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(runtime, "BAR_AFTER_S", after_s)
    monkeypatch.setenv("RANK", rank)
    assert list(runtime.progress(range(3), what="read", unit="tensor")) == [0, 1, 2]
    assert ("read" in stream.getvalue()) == shown
    if not shown:
        assert stream.getvalue() == ""


def test_the_environment_names_the_device_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_DEVICE", "cpu")
    assert runtime.environment()["device"] == "cpu"


# --- how a stage or command ends ---


def ended(body: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the lines as the function of `stage_main` in a process of its own."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    script = f"from gpt2core.runtime import stage_main\ndef main():\n{lines}\nstage_main(main)\n"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, errors="replace", timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ("open('nowhere/file.txt')", ["nowhere/file.txt", "No such file"]),
        ("open('.')", ["directory", "a file is needed"]),
        ("raise PermissionError(13, 'Permission denied', 'params.yaml')", ["params.yaml", "Permission", "permissions"]),
        ("raise OSError(30, 'Read-only file system', 'metrics')", ["metrics", "Read-only", "can be written"]),
        ("raise OSError(28, 'No space left on device', 'models')", ["the disk is full", "models"]),
        ("raise ConnectionResetError('peer')", ["peer"]),
        ("bytearray(1 << 60)", ["not enough memory"]),
        ("import torch; torch.empty(1 << 55)", ["not enough memory"]),
        ("import json; json.loads('[' * 200_000)", ["nested too deeply"]),
        ("from gpt2core.errors import UserError; raise UserError('a\\x1b[2Jb http://u:planted@h')", ["\\x1b", "***@h"]),
    ],
)
def test_what_a_user_can_put_right_is_one_line(tmp_path: Path, body: str, facts: list[str]) -> None:
    process = ended(body, tmp_path)
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith("error: ")
    assert all(fact in process.stderr for fact in facts), process.stderr
    assert "\x1b" not in process.stderr
    assert "planted" not in process.stderr


@pytest.mark.parametrize("body", ["raise RuntimeError('a bug')", "raise KeyError('x')", "1 / 0"])
def test_a_bug_keeps_its_traceback(tmp_path: Path, body: str) -> None:
    process = ended(body, tmp_path)
    assert process.returncode == 1
    assert "Traceback" in process.stderr


def test_a_terminal_without_a_character_gets_a_replacement(tmp_path: Path) -> None:
    process = ended("print('naïve → 漢字')", tmp_path, PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert (process.returncode, process.stderr) == (0, "")


def test_a_reader_that_has_enough_ends_the_command_in_silence(tmp_path: Path) -> None:
    script = (
        "from gpt2core.runtime import stage_main\n"
        "def main():\n    for number in range(100_000):\n        print(number)\nstage_main(main)\n"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} | head -1"
    process = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (process.stdout, process.stderr) == ("0\n", "")


@pytest.mark.parametrize("module", ["gpt2core", "stages.pretrain"])
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_importing_is_one_line(tmp_path: Path, module: str, number: int, code: int, said: str) -> None:
    slow = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    for name in ("click", "torch"):
        (tmp_path / f"{name}.py").write_text(slow, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", module], cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job begins with Ctrl-C ignored
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.split()) == (code, [said])


@pytest.mark.parametrize("stage", ["pretrain", "tokenize", "llm_judge_eval"])
def test_a_stage_run_by_its_path_says_how_to_run_it(stage: str) -> None:
    process = subprocess.run(
        [sys.executable, f"stages/{stage}.py"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
    assert "python -m stages." in process.stderr


@pytest.mark.parametrize("stage", ["tokenize", "llm_judge_eval"])
def test_a_stage_for_one_process_refuses_torchrun(stage: str) -> None:
    """Each process of torchrun would do all the work."""
    environment = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "GPT2CORE_TRACKING": "off"}
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=ROOT, env=os.environ | environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "torchrun started 2 processes" in done.stderr


def test_freed_memory_is_used_again() -> None:
    """Each page that Linux gives to a process is a page fault."""
    code = """
import resource, sys, torch
from gpt2core import runtime
if sys.argv[1] == "reuse":
    runtime.reuse_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(16, 1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(5)][-1])
"""
    again, plain = (
        int(subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("reuse", "plain")
    )
    assert plain > 1000
    assert again < plain / 50


@pytest.mark.parametrize("name", ["mps", "meta", "xla", "tpu", "cuda:99", "\x1b[31m"])
def test_a_device_that_is_not_there_is_one_short_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_DEVICE", name)
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(UserError, match="this device cannot be used.*try cpu") as error:
        runtime.device()
    assert len(str(error.value)) < 400
