"""The same bytes under emulated CPUs of AMD and of Intel: trainings, evaluations, baselines and generated texts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpt2core import files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-x86_64 is missing: apt install qemu-user"),
]

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("emulated.py")
PYTHON = Path(sys.executable).resolve()  # qemu loads it itself, so it finds no virtual environment
HERE, AMD, INTEL = None, "EPYC", "Haswell-noTSX"


def run(cpu: str | None, *arguments: str | Path) -> None:
    """Run the program under a CPU model, or without emulation."""
    emulator = ["qemu-x86_64", "-cpu", cpu] if cpu else []
    in_one_process = {"GPT2CORE_PROCESSES": "1"} if cpu else {}  # qemu's fork of several threads may hang
    result = subprocess.run(
        [*emulator, PYTHON, PROGRAM, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))} | in_one_process,
        capture_output=True,
        text=True,
        timeout=1500,  # a busy machine
    )
    assert result.returncode == 0, f"{cpu}: {result.stderr[-4000:]}"


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The hashes of all results without emulation, on AMD, and on Intel; and of a training that changed the CPU."""
    folder = tmp_path_factory.mktemp("emulated")
    states = folder / "states"

    def move_training() -> None:
        run(AMD, folder / "stopped", "--states", states, "--stop-after", "2")
        (state, *_) = sorted(states.iterdir(), reverse=True)
        assert state.name.startswith("0000000002.")
        run(INTEL, folder / "moved", "--states", states, "--only-pretrain")

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(run, cpu, folder / name) for cpu, name in ((AMD, "amd"), (INTEL, "intel"), (HERE, "here"))]
        jobs.append(pool.submit(move_training))
        for job in jobs:
            job.result()
    return {name: hashes(folder / name) for name in ("here", "amd", "intel", "stopped", "moved")}


@pytest.mark.parametrize("cpu", ["amd", "intel"])
def test_all_results_have_the_bytes_of_this_cpu(results: dict[str, dict[str, str]], cpu: str) -> None:
    assert {Path(name).parts[0] for name in results["here"]} >= {
        "pretrained", "classifier", "instruct", "classify", "classify.json", "evaluate.json", "texts.json"
    }  # fmt: skip
    differing = [name for name in results["here"] | results[cpu] if results["here"].get(name) != results[cpu].get(name)]
    assert not differing


def test_a_training_that_moves_to_another_cpu_ends_with_the_same_bytes(results: dict[str, dict[str, str]]) -> None:
    moved = results["moved"]
    assert {Path(name).parts[0] for name in moved} == {"pretrained", "pretrain.json", "fingerprint.json"}
    assert moved == {name: results["here"][name] for name in moved}


def test_states_of_one_cpu_belong_to_the_training_on_another(results: dict[str, dict[str, str]]) -> None:
    assert results["stopped"] == {"fingerprint.json": results["moved"]["fingerprint.json"]}
