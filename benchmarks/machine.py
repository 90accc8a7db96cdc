"""What this machine can do at best, and what a process takes of it: the limits beside which speed is told.

python -m benchmarks.machine
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

GB = 1e9
# Far beyond the caches of a machine with few cores; a large server would need more.
ARRAY_BYTES = 1 << 30


def memory_bandwidth_gb_s(repeats: int = 6) -> float:
    """How fast all of torch's threads together read memory, in GB/s (1e9 bytes): the best of three kinds of reading.

    Each kind is a lower bound of what the memory gives, so the best of them is the fairest limit: a sum in float32, one
    in int64, and a matrix-vector product, which is what decoding one token does with the weights.

    Args:
        repeats: passes over 1 GiB, of each kind.
    """
    rows = 1 << 14
    matrix = torch.ones(rows, ARRAY_BYTES // 4 // rows)  # [N, K]; written to, so its pages are there
    vector = torch.ones(matrix.size(1))  # [K]
    integers = matrix.view(torch.int64)  # [N, K / 2]
    best_s = min(best_time_s(kind, repeats) for kind in (matrix.sum, integers.sum, lambda: matrix @ vector))
    return ARRAY_BYTES / best_s / GB


def best_time_s(work: Callable[[], object], repeats: int) -> float:
    """The shortest of `repeats` runs, in seconds, after one that does not count."""
    work()
    times_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)


class Seconds(NamedTuple):
    """By the clock, and of all threads together."""

    wall: float
    cpu: float


def now() -> Seconds:
    return Seconds(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Used:
    """What a process took: wall time from start to end, and its peak of anonymous memory."""

    time_s: float
    peak_anonymous_bytes: int


def run_measured(
    command: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None = None,
    interval_s: float = 0.005,
    cwd: str | os.PathLike[str] | None = None,
) -> Used:
    """Run a program and measure it (Linux).

    Args:
        command: the program and its arguments.
        env: its environment. None: the environment of this process.
        interval_s: time between two samples of anonymous memory, in seconds. A shorter peak can be missed.
        cwd: its working directory. None: that of this process.

    Raises:
        RuntimeError: the program failed; the message ends with its output.
    """
    start_s, peak_bytes = time.perf_counter(), 0
    with (
        tempfile.TemporaryFile("w+") as written,  # not a pipe, which a talkative program would fill
        subprocess.Popen(command, env=env, cwd=cwd, stdout=written, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            peak_bytes = max(peak_bytes, anonymous_bytes(process.pid))
            time.sleep(interval_s)
        process.wait()
        time_s = time.perf_counter() - start_s
        if process.returncode:
            written.seek(0)
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {written.read()[-2000:]}")
    return Used(time_s, peak_bytes)


def anonymous_bytes(pid: int) -> int:
    """What a process holds itself: `RssAnon` of /proc/PID/status (Linux), which leaves out mapped files that the page
    cache holds anyway. 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def description() -> str:
    """Processor, threads and torch, in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu} ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    print(description())
    print(f"memory: {memory_bandwidth_gb_s():.1f} GB/s read")
