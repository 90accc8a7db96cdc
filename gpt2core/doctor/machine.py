"""Checks of Python, torch, threads, and compiler."""

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
from gpt2core.doctor import Finding, Level, some_of
from gpt2core.errors import UserError
from gpt2core.params import Params
from gpt2core.params.checks import TRAININGS

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 9)

LOCKS = ("requirements.lock", "requirements-torch.txt")


def python(root: Path) -> Iterator[Finding]:
    """Check the interpreter, that stages would run the same one, and the locked versions."""
    interpreter = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Finding("problem", "python", interpreter, "install Python 3.11 or newer; then: make PYTHON=python3.12")
    else:
        yield Finding("ok", "python", interpreter)
    stage_python = shutil.which("python")  # what DVC starts a stage with
    if stage_python is None or Path(stage_python).parent.resolve() != Path(sys.executable).parent.resolve():
        python = stage_python or "no python at all"
        yield Finding("problem", "python", f"stages would run {python}", "source .venv/bin/activate")
    locks = [path for name in LOCKS if (path := root / name).exists()]
    if others := other_versions("\n".join(path.read_text(encoding="utf-8") for path in locks)):
        differ = f"{len(others)} packages differ from requirements.lock: {some_of(others)}; bits may differ, too"
        remedy = "pip install -r requirements-torch.txt; pip install --no-deps -r requirements.lock"
        yield Finding("warning", "python", differ, remedy)


def other_versions(lock: str) -> list[str]:
    """Return the installed versions that differ from the lines `name==version`, apart from a build's suffix (+cpu)."""
    others = []
    for name, locked in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock, re.MULTILINE):
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "none"
        if here.partition("+")[0] != locked:
            others.append(f"{name} {here} (lock {locked})")
    return others


def torch_and_devices() -> Iterator[Finding]:
    """Check torch's version, the device that a training would use, and the number of threads."""
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
        memory = f"{torch.cuda.get_device_name()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield Finding("ok", "device", f"{memory}, CUDA {torch.version.cuda}")
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
    """Check what torch.compile needs, if the params switch it on."""
    import torch

    values = {section: getattr(params, section).compile for section in TRAININGS}
    compiled = [section for section, value in values.items() if value is not False]
    if not compiled:
        yield Finding("ok", "compiler", "not needed: compile is false in each training")
        return
    if torch.cuda.is_available():
        name, remedy = "Triton", "pip install triton"
        compiler = "Triton" if torch.utils._triton.has_triton() else None
    else:
        name, remedy = "C++ compiler", "install g++"
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler:
        yield Finding("ok", "compiler", compiler)
    else:
        said = " and ".join(f"{section}.compile is {str(values[section]).lower()}" for section in compiled)
        level: Level = "problem" if True in values.values() else "warning"
        yield Finding(level, "compiler", f"no {name}, and {said}", f"{remedy}, or set compile: false there")
