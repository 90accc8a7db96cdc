"""Python, torch, threads and compiler."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from gpt2core import runtime
from gpt2core.doctor.finding import Finding, Level
from gpt2core.errors import UserError
from gpt2core.params import Params

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 9)
MAX_NAMED = 5  # of a list in one line


def python(root: Path) -> Iterator[Finding]:
    """The interpreter, whether the stages would get the same one, and the locked versions."""
    said = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Finding("problem", "python", said, "install Python 3.11 or newer; then: make PYTHON=python3.12")
    else:
        yield Finding("ok", "python", said)
    theirs = shutil.which("python")  # what DVC starts a stage with
    if theirs is None or Path(theirs).parent.resolve() != Path(sys.executable).parent.resolve():
        yield Finding(
            "problem", "python", f"stages would run {theirs or 'no python at all'}", "source .venv/bin/activate"
        )
    lock = root / "requirements.lock"
    if lock.exists() and (others := other_versions(lock.read_text(encoding="utf-8"))):
        named = ", ".join(others[:MAX_NAMED]) + (", …" if len(others) > MAX_NAMED else "")
        yield Finding(
            "warning", "python", f"{len(others)} packages differ from requirements.lock: {named}; bits may differ, too",
            "pip install -r requirements.lock",
        )  # fmt: skip


def other_versions(lock: str) -> list[str]:
    """What is installed otherwise than the lines `name==version` say. A build's suffix (+cpu) does not count."""
    found = []
    for name, wanted in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock, re.MULTILINE):
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "none"
        if here.partition("+")[0] != wanted:
            found.append(f"{name} {here} (lock {wanted})")
    return found


def torch_and_devices() -> Iterator[Finding]:
    """torch's version, the device that a training would take, and the threads."""
    import torch

    numbers = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    old = numbers < OLDEST_TORCH
    yield Finding("problem" if old else "ok", "torch", torch.__version__, "pip install 'torch>=2.9'" if old else "")
    try:
        device = runtime.device()
    except UserError as error:
        yield Finding("problem", "device", str(error), "unset GPT2CORE_DEVICE")
        return
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        said = f"{torch.cuda.get_device_name()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield Finding("ok", "device", f"{said}, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi") and device.type == "cpu" and "GPT2CORE_DEVICE" not in os.environ:
        yield Finding(
            "warning", "device", "there is an NVIDIA driver, but this torch has no CUDA that fits it",
            "install the torch build for its CUDA: https://pytorch.org/get-started",
        )  # fmt: skip
    else:
        yield Finding("ok", "device", f"{device.type}, {torch.backends.cpu.get_cpu_capability()}")
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > cores:
        remedy = f"export OMP_NUM_THREADS={cores}"
        yield Finding("warning", "threads", f"{threads} on {cores} cores, which is slower", remedy)
    elif threads < cores and device.type == "cpu":
        remedy = f"unset OMP_NUM_THREADS for all {cores} (numerics: portable always takes two)"
        yield Finding("note", "threads", f"{threads} of {cores} cores", remedy)
    else:
        yield Finding("ok", "threads", f"{threads} on {cores} cores")


def compiler(params: Params) -> Iterator[Finding]:
    """What torch.compile needs, where the params ask for it."""
    import torch

    wanted = params.pretrain.compile
    if wanted is False:
        yield Finding("ok", "compiler", "not needed: pretrain.compile is false")
        return
    on_gpu = torch.cuda.is_available()
    name = "Triton" if on_gpu else "a C++ compiler"
    if on_gpu:
        found = "Triton" if torch.utils._triton.has_triton() else None
    else:
        found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if found:
        yield Finding("ok", "compiler", found)
    else:
        level: Level = "problem" if wanted is True else "warning"
        remedy = "pip install triton" if on_gpu else "install g++"
        said = f"no {name.removeprefix('a ')}, and pretrain.compile is {str(wanted).lower()}"
        yield Finding(level, "compiler", said, f"{remedy}, or set pretrain.compile: false")
