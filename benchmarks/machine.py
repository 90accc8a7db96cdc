"""Limits of this machine, and what the benchmarks share: timing, turns, peak memory, random models.

python -m benchmarks.machine
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from gpt2core import runtime
from gpt2core.config.presets import PRESETS
from gpt2core.log import log_to_stderr
from gpt2core.model import GPT, GPTConfig
from gpt2core.tokenizer import Tokenizer, read_bpe

ROOT = Path(__file__).parents[1]
GB, MB = 1e9, 1e6
GPT2_VOCABULARY = 50_257
# Far beyond the caches of a machine with few cores; a large server would need more.
ARRAY_BYTES = 1 << 30
Result = TypeVar("Result")


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a module's docstring; from now on, messages appear on standard error."""
    log_to_stderr()
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def kind() -> str:
    """Return the processor and its threads, or the GPU: what figures of several days must share to be compared."""
    facts = runtime.environment()
    if torch.cuda.is_available() and os.environ.get("GPT2CORE_DEVICE") != "cpu":
        return facts["device"]
    return f"{facts['cpu']} ({facts['cpu_capability']}), {facts['threads']} threads"


def description() -> str:
    """Return the machine's kind and torch, in one line."""
    return f"{kind()}, torch {torch.__version__}"


# -- Inputs ----------------------------------------------------------------------------------------------------------


def random_model(size: str, vocab_size: int = GPT2_VOCABULARY) -> GPT:
    """Return a model of a GPT-2 size with random weights, in eval mode."""
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=vocab_size, **PRESETS[size])).eval()


def gpt2_tokenizer(mirror: Path) -> Tokenizer:
    """Return GPT-2's tokenizer from a mirror."""
    return read_bpe(mirror / "gpt2-bpe/encoder.json", mirror / "gpt2-bpe/vocab.bpe")


def random_checkpoint(size: str, folder: Path, bpe: Path | None = None) -> Path:
    """Write OpenAI's files of a size with random weights, and with the tokenizer in a folder or a made-up one."""
    script = ROOT / "scripts/make_random_checkpoint.py"
    tokenizer = ["--bpe", bpe] if bpe else []
    subprocess.run([sys.executable, script, size, folder / "openai", *tokenizer], check=True)
    return folder / "openai"


# -- Time ------------------------------------------------------------------------------------------------------------


class Seconds(NamedTuple):
    """Wall time, and CPU time of all threads together."""

    wall: float
    cpu: float


def timed(work: Callable[[], Result]) -> tuple[Seconds, Result]:
    """Run a function; return its time and its result."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = work()
    return Seconds(time.perf_counter() - wall_s, time.process_time() - cpu_s), result


def best_time_s(work: Callable[[], object], repeats: int) -> float:
    """Return the shortest of `repeats` runs, in seconds, after one that does not count."""
    work()
    return min(timed(work)[0].wall for _ in range(repeats))


def in_turn(sides: Mapping[str, Callable[[], Result]], rounds: int, warm_up: int = 0) -> dict[str, list[Result]]:
    """Run all sides in every round, so that other work on the machine affects them alike; return their results."""
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, side in sides.items():
            result = side()
            if number >= warm_up:
                results[name].append(result)
    return results


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Return the median of values and their range.

    >>> spread([3, 1, 2.25])
    '2.2 (1.0 to 3.0)'
    """
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


# -- Memory ----------------------------------------------------------------------------------------------------------


def memory_bandwidth_gb_s(repeats: int = 6) -> float:
    """Return how fast torch's threads read memory, in GB/s (1e9 bytes): the best of three kinds of reading.

    Each kind is a lower limit of the memory's speed, so the best of them is the fairest limit: a sum in float32, one in
    int64, and a matrix-vector product, which is what decoding a token does with the weights. Each reads 1 GiB
    `repeats` times.
    """
    rows = 1 << 14
    matrix = torch.ones(rows, ARRAY_BYTES // 4 // rows)  # [N, K]; written to, so its pages exist
    vector = torch.ones(matrix.size(1))  # [K]
    integers = matrix.view(torch.int64)  # [N, K / 2]
    best_s = min(best_time_s(kind, repeats) for kind in (matrix.sum, integers.sum, lambda: matrix @ vector))
    return ARRAY_BYTES / best_s / GB


def resident_bytes(pid: int) -> dict[str, int]:
    """Return RssAnon, RssFile, and RssShmem of /proc/PID/status (Linux), in bytes; nothing if the process has ended.

    Anonymous memory leaves out mapped files, which the page cache holds anyway.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process, in bytes; 0 if it has ended."""
    return resident_bytes(pid).get("RssAnon", 0)


@contextlib.contextmanager
def peak_of(sample: Callable[[], int], interval_s: float = 0.005) -> Iterator[Callable[[], int]]:
    """Call `sample` again and again within the block; yield a function that returns its maximum so far."""
    done, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(interval_s):
            peak = max(peak, sample())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True)
class Used:
    """Wall time of a process from start to end, and its peak of anonymous memory."""

    time_s: float
    peak_anonymous_bytes: int


def run_measured(
    command: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None = None,
    interval_s: float = 0.005,
    cwd: str | os.PathLike[str] | None = None,
) -> Used:
    """Run a program and measure it (Linux).

    Anonymous memory is sampled every `interval_s` seconds; a shorter peak can be missed.

    Raises:
        RuntimeError: the program failed; the message ends with its output.
    """
    start_s = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as output,  # not a pipe, which a program with much output would fill
        subprocess.Popen(command, env=env, cwd=cwd, stdout=output, stderr=subprocess.STDOUT) as process,
        peak_of(lambda: anonymous_bytes(process.pid), interval_s) as peak_bytes,
    ):
        process.wait()
        time_s = time.perf_counter() - start_s
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {output.read()[-2000:]}")
        return Used(time_s, peak_bytes())


if __name__ == "__main__":
    print(description())
    print(f"memory: {memory_bandwidth_gb_s():.1f} GB/s read")
