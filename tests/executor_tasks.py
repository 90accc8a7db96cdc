"""Tasks of test_executor.py. Processes import them by name, so they are in a module that imports no test tools."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2core import executor
from gpt2core.errors import UserError


def square(number: int) -> int:
    executor.report("began", number)
    executor.report("squares", number)
    return number * number


def refuse(number: int) -> int:
    if number == 2:
        raise UserError(f"row {number}: is not allowed")
    if number == 3:
        raise FileNotFoundError(2, "No such file or directory", "gone.txt")
    return number


def die_once(folder: str, number: int) -> int:
    """Kill this process at the first call for task 1."""
    died = Path(folder, "died")
    if number == 1 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def wait_for(folder: str, number: int) -> list[object]:
    """Say which node and process run the task, and wait for the test's permission to end."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    Path(folder, f"{number}-{node}-{os.getpid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return [number, node]


def environment_of(_: int) -> list[object]:
    names = ("GPT2CORE_RAY", "GPT2CORE_PROCESSES", "ATEN_CPU_CAPABILITY")
    return [str(Path.cwd()), {name: os.environ.get(name) for name in names}, executor.__file__, "torch" in sys.modules]


def main() -> None:
    """Run the tasks on a Ray cluster of this machine, and print what they return."""
    import psutil

    folder, results, reports, errors = sys.argv[1], [], [], []
    with executor.open_executor() as ray:

        def run(function: Callable[..., Any], *arguments: list[Any]) -> None:
            try:
                results.append(list(ray.map(function, arguments, lambda *values: reports.append(values))))
            except (UserError, OSError) as error:
                errors.append([type(error).__name__, str(error), repr(error.__cause__)])

        run(square, *([n] for n in range(20)))
        run(environment_of, [0])
        run(die_once, *([folder, n] for n in range(4)))
        run(refuse, [0], [1], [2])
        run(refuse, [3])
        connections = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # the killed one
                connections += process.net_connections()
        listening = sorted({c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN})
    print(json.dumps({"results": results, "reports": reports, "errors": errors, "listening": listening}))
