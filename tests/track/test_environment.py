"""A run says what differs from the environment of the last one, in a process of its own each."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2core import runtime

STAGE = """
import sys
if "torch" in sys.argv: import torch
from gpt2core.config import Params
from gpt2core.track import stage_run
with stage_run("pretrain", Params.model_construct(seed=1)):
    if "fail" in sys.argv: raise SystemExit("it failed")
"""
WARNING = "warning: pretrain last ran elsewhere (metrics/environment.json): "


def run(folder: Path, *arguments: str, **env: str) -> str:
    """Run the stage; returns what it wrote to stderr."""
    private = ("DVC_", "GPT2CORE_", "OMP_", "MKL_", "ATEN_", "RANK")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    done = subprocess.run(
        [sys.executable, "-c", STAGE, *arguments],
        cwd=folder, env=clean | {"GPT2CORE_TRACKING": "off"} | env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == ("fail" in arguments), done.stderr
    return done.stderr


def record(folder: Path) -> dict:
    return json.loads((folder / "metrics/environment.json").read_text())


def test_a_run_elsewhere_says_what_differs_and_an_equal_one_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "torch", OMP_NUM_THREADS="2") == ""  # nothing to compare with
    first = record(tmp_path)["pretrain"]
    assert first["torch"] == torch.__version__
    assert first["python"] == platform.python_version()
    assert first["threads"] == "2"
    assert first.keys() >= {"cpu", "cpu_capability", "device", "numpy", "tiktoken"}
    content = (tmp_path / "metrics/environment.json").read_bytes()
    assert run(tmp_path, "torch", OMP_NUM_THREADS="2") == ""
    assert (tmp_path / "metrics/environment.json").read_bytes() == content

    elsewhere = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"}
    plain = first["cpu_capability"] == "DEFAULT"  # a processor that PyTorch has no special kernels for
    said = f"{WARNING}threads 2, here 1"
    said += "" if plain else f"; cpu_capability {first['cpu_capability']}, here DEFAULT"
    said += ". Results may differ in the last bits\n"
    assert run(tmp_path, "torch", "fail", **elsewhere) == said + "it failed\n"
    assert record(tmp_path)["pretrain"] == first  # its results are not there
    assert run(tmp_path, "torch", **elsewhere) == said
    assert record(tmp_path)["pretrain"] == first | {"threads": "1", "cpu_capability": "DEFAULT"}
    assert run(tmp_path, "torch", **elsewhere) == ""


def test_other_versions_are_named(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "metrics/environment.json"
    changed = record(tmp_path)
    here = changed["pretrain"].pop("numpy")
    changed["pretrain"] |= {"python": "3.10.0"}
    path.write_text(json.dumps(changed))
    said = run(tmp_path)
    assert f"python 3.10.0, here {platform.python_version()}; numpy none, here {here}. " in said
    assert len(said.splitlines()) == 1


def test_threads_do_not_matter_to_a_stage_without_torch(tmp_path: Path) -> None:
    run(tmp_path, OMP_NUM_THREADS="2")
    assert run(tmp_path, OMP_NUM_THREADS="1") == ""
    assert not record(tmp_path)["pretrain"].keys() & {"threads", "cpu", "cpu_capability", "device"}


@pytest.mark.parametrize("content", ["{half", "[]", '{"pretrain": 3}'])
def test_a_damaged_record_is_written_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/environment.json").write_text(content)
    assert run(tmp_path) == ""
    assert record(tmp_path)["pretrain"]["python"] == platform.python_version()


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics").touch()
    assert run(tmp_path).startswith("warning: metrics/environment.json was not written (")


def test_of_several_ranks_the_first_one_speaks(tmp_path: Path) -> None:
    run(tmp_path, "torch", OMP_NUM_THREADS="2")
    assert run(tmp_path, "torch", OMP_NUM_THREADS="1", RANK="1") == ""
    assert record(tmp_path)["pretrain"]["threads"] == "2"


def test_the_device_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_DEVICE", "cpu")
    assert runtime.environment()["device"] == "cpu"
