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


def run(cpu: str | None, *arguments: str | Path) -> str:
    """Run the program under a CPU model, or without emulation; return its messages."""
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
    return result.stderr


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The hashes of all results without emulation, on AMD, and on Intel, where the pretraining began on AMD."""
    folder = tmp_path_factory.mktemp("emulated")
    with ThreadPoolExecutor(1) as pool:
        here = pool.submit(run, HERE, folder / "here")
        said = {
            "amd": run(AMD, folder / "amd", "--states", folder / "states", "--stop-after", "2"),
            "intel": run(INTEL, folder / "intel", "--states", folder / "stopped"),
            "here": here.result(),
        }
    for cpu, text in said.items():
        assert ("resumed at step 2 of 4" in text) == (cpu != "here"), text
    return {name: hashes(folder / name) for name in said}


@pytest.mark.parametrize("cpu", ["amd", "intel"])
def test_all_results_have_the_bytes_of_this_cpu(results: dict[str, dict[str, str]], cpu: str) -> None:
    """Intel's are of a training that moved there; its states belonged to it."""
    assert {Path(name).parts[0] for name in results["here"]} >= {
        "pretrained", "classifier", "instruct", "classify", "classify.json", "evaluate.json", "fingerprint.json",
        "texts.json",
    }  # fmt: skip
    differing = [name for name in results["here"] | results[cpu] if results["here"].get(name) != results[cpu].get(name)]
    assert not differing
