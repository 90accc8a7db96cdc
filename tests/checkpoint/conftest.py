"""TensorFlow in a process of its own, which takes five seconds to start."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each line of input is the argument list of a script; the answer is its traceback, or an empty string.
RUN_SCRIPTS = """
import json, os, runpy, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a script prints is no answer
for line in sys.stdin:
    sys.argv = json.loads(line)
    error = ""
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps(error), file=answers, flush=True)
"""


@pytest.fixture(scope="session")
def tensorflow() -> Iterator[Callable[..., None]]:
    """Run a Python script with TensorFlow; all of them in one process, one after the other."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs tensorflow")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_SCRIPTS], env=environment, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def run(*command: str | Path) -> None:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps([str(word) for word in command]) + "\n")
        process.stdin.flush()
        error = json.loads(process.stdout.readline())
        assert not error, error

    yield run
    process.kill()
    process.communicate()
