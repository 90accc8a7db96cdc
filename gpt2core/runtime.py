"""Device, dtype, seeds, and progress bars, and the exit of a stage after a user's mistake."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gpt2core import files
from gpt2core.errors import UserError, first_line
from gpt2core.log import log_to_stderr, logger, shown
from gpt2core.signals import interrupted, raise_on_signals

if TYPE_CHECKING:
    import torch


DECODING_DTYPES = ("float32", "bfloat16", "float16", "int8")  # weights while generating; see model/inference.py
EXTRAS = "[pipeline,judge,ui,eval]"
RANK_0_FIRST_S = 5.0  # torchrun needs less to end the other processes after a failure


def stage_main(main: Callable[[], None], *, is_distributed: bool = False) -> None:
    """Run the function `main` of a stage or command. One that is not distributed refuses torchrun's processes.

    Whatever a user can put right ends with a message and exit code 1: a mistake, a file that cannot be read or written,
    a package that is not installed, a full disk, too little memory, an input that is nested too deeply. Ctrl-C ends
    with 130, SIGTERM with 143. Another exception is a bug, and keeps its traceback.
    """
    log_to_stderr()
    raise_on_signals()
    if sys.stdout is None:  # closed by the shell: >&-
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 lacks most characters
    try:
        _check_processes(is_distributed)
        main()
    except UserError as error:
        _fail(f"error: {error}")
    except BrokenPipeError:  # the reader of a pipe, as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        sys.exit(1)
    except OSError as error:
        _fail(f"error: {_of_the_system(error)}")
    except (MemoryError, RecursionError, RuntimeError, ModuleNotFoundError) as error:
        if not (reason := _of_the_machine(error)):
            raise
        _fail(f"error: {reason}")
    except KeyboardInterrupt as error:
        interrupted(error)


def _check_processes(is_distributed: bool) -> None:
    """Raise UserError if torchrun started several processes of a stage for one: each would do all the work."""
    n_processes = os.environ.get("WORLD_SIZE", "1")
    if not is_distributed and n_processes != "1":
        raise UserError(
            f"torchrun started {n_processes} processes, and each would do all the work; run this stage without it "
            "(pretrain and the two fine-tunings compute in several processes: launcher)"
        )


def start_launcher(launcher: str, module: str) -> None:
    """Replace this process by the launcher's command and `-m module`, unless torchrun has started this process.

    Args:
        launcher: `python`, which changes nothing, or a command of torchrun. It may name environment variables: `$HEAD`.
        module: the stage that each process runs.

    Raises:
        UserError: the command is not installed.
    """
    if launcher == "python" or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    words = shlex.split(os.path.expandvars(launcher))
    if words[0] in ("python", "torchrun"):  # those of this environment
        words[:1] = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "torch.distributed.run"]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(words[0], [*words, "-m", module])
    except FileNotFoundError:
        raise UserError(f"launcher: {words[0]} is not installed on this machine; take torchrun, or python") from None


def _of_the_system(error: OSError) -> str:
    """Return the message of an error of the operating system, with the file and what to do."""
    if error.errno in files.DISK_FULL:
        return f"the disk is full: {error.filename or 'a file'} cannot be written; free some space, run again"
    where = f"{error.filename}: " if error.filename is not None else ""
    remedies = {
        errno.EACCES: "; check its permissions",
        errno.EPERM: "; check its permissions",
        errno.EROFS: "; copy the project to a place that can be written",
        errno.EISDIR: "; a file is needed here",
        errno.EMFILE: "; raise the limit with: ulimit -n 4096",
    }
    return f"{where}{error.strerror or error}{remedies.get(error.errno or 0, '')}"


def _of_the_machine(error: Exception) -> str | None:
    """Return the message if the machine is too small for the work, or lacks a package; None for another error."""
    if isinstance(error, ModuleNotFoundError):
        is_ours = str(error.name).partition(".")[0] in ("None", "gpt2core", "stages")
        return (
            None if is_ours else f"{error.name} is not installed; its extra is one of: pip install 'gpt2core{EXTRAS}'"
        )
    if isinstance(error, RecursionError):
        return "an input is nested too deeply; check the files that were just read"
    out_of_memory = ("can't allocate memory", "out of memory", "DefaultCPUAllocator")  # torch raises RuntimeError
    if isinstance(error, MemoryError) or any(words in str(error) for words in out_of_memory):
        return "not enough memory; take a smaller batch_size or context, a smaller model, or close other programs"
    return None


def _fail(message: str) -> NoReturn:
    """Exit with a message.

    Of processes that torchrun started together, the first one reports: the others mostly had the same error, and
    torchrun ends them after it. A process that is left then has an error of its own.
    """
    if rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(RANK_0_FIRST_S)
        message = f"process {rank()}: {message}"
    message = shown(message)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun shows it in its own report, which comes last
        files.write_json(path, {"message": message, "timestamp": int(time.time())})
    sys.exit(message)


def rank() -> int:
    """Return the number of this process among those that torchrun started together; 0 if there is one."""
    value = os.environ.get("RANK", "0")
    return int(value) if value.isdecimal() else 0  # only torchrun's numbers count


def seed_everything(seed: int) -> None:
    """Seed torch's global generators (initial weights, dropout). Data order has generators of its own."""
    import torch

    torch.manual_seed(seed)


def device() -> torch.device:
    """Return the device `GPT2CORE_DEVICE` if it is set, else CUDA if available, else the CPU."""
    import torch

    name = os.environ.get("GPT2CORE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.ones(1, device=name).device
        if found.type == "meta":
            raise RuntimeError("it computes nothing")
        return found
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).partition(". ")[0]
        raise UserError(
            f"GPT2CORE_DEVICE={name}: this device cannot be used: the machine lacks it, or this build of PyTorch does "
            f"({reason:.150}); try cpu"
        ) from None


def reuse_memory() -> None:
    """Keep memory that is freed, instead of returning it to Linux, which would clear every page again.

    A training step of 124M allocates gigabytes and frees them; clearing takes 8% of its time. Only glibc can do this.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # as in <malloc.h>
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def available_processes() -> int:
    """Return `GPT2CORE_PROCESSES` if it is set, else the number of cores that this process may use.

    Raises:
        UserError: it is set to something else than a positive number.
    """
    value = os.environ.get("GPT2CORE_PROCESSES")
    if value is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"GPT2CORE_PROCESSES={value}: must be a number of processes, 1 or more")
    return int(value)


def training_dtype(name: str) -> torch.dtype:
    """Return the dtype of a params value: float32, bfloat16, or for `auto` the faster of them, which is logged."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            fast, reason = torch.cuda.is_bf16_supported(including_emulation=False), "this GPU"
        else:
            fast, reason = _cpu_has_bfloat16(), "this CPU"
        name = "bfloat16" if fast else "float32"
        logger.info(f"dtype: {name} (auto: {reason} {'has' if fast else 'has no'} bfloat16 arithmetic)")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _cpu_has_bfloat16() -> bool:
    """Return whether the CPU has AVX-512 bf16, AMX, or Arm's bf16; others emulate bfloat16, slower than float32."""
    import torch

    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu.get_capabilities().get("arm_bf16", False))


MIN_COMPILED_STEPS = 500  # a compilation takes about a minute


def should_compile(value: bool | str, max_steps: int) -> bool:
    """Return whether to use torch.compile: the params value, or for `auto` whether it pays, which is logged."""
    import shutil

    import torch

    if value != "auto":
        return bool(value)
    if max_steps < MIN_COMPILED_STEPS:
        compiles, reason = False, f"{max_steps} steps do not repay a minute of compiling; {MIN_COMPILED_STEPS} would"
    elif torch.cuda.is_available():
        compiles = torch.utils._triton.has_triton()
        reason = "Triton is installed" if compiles else "Triton is not installed"
    else:
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        compiles, reason = bool(compiler), f"compiler {compiler}" if compiler else "no C++ compiler; install g++"
    logger.info(f"compile: {str(compiles).lower()} (auto: {reason})")
    return compiles


BAR_AFTER_S = 2.0  # shorter work needs no progress bar


def progress(items: Iterable[Any] | None = None, *, what: str, unit: str, total: int | None = None) -> Any:
    """Return a tqdm bar for work that may take long: shown after two seconds, and only on a terminal.

    Args:
        items: items to count; without them the caller calls `update` and, at the end, `close`.
        what: description of the work.
        unit: name of an item.
        total: number of items, if `items` has no length.
    """
    from tqdm import tqdm

    quiet = True if rank() else None  # None: where standard error is no terminal
    return tqdm(items, desc=what, unit=unit, total=total, leave=False, disable=quiet, delay=BAR_AFTER_S)


# Libraries whose version may change the bytes of a stage's outputs.
LIBRARIES = ("numpy", "pyarrow", "regex", "sacrebleu", "safetensors", "scikit-learn", "scipy", "tiktoken", "torch")

OF_THE_CPU = ("cpu", "threads", "cpu_capability")  # entries of `environment` that change with the CPU


def environment() -> dict[str, str]:
    """Return what decides the last bits of a result: versions and, if torch computes, CPU, threads, and instructions.

    torch takes seconds to import: a stage that does not import it does not use its threads.
    """
    import platform
    from importlib.metadata import version

    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    if torch := sys.modules.get("torch"):
        device_name = os.environ.get("GPT2CORE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
        is_gpu = device_name.startswith("cuda") and torch.cuda.is_available()
        versions |= {
            "cpu": _cpu_name(),
            "threads": str(torch.get_num_threads()),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "device": torch.cuda.get_device_name() if is_gpu else device_name,
        }
    return versions


def _cpu_name() -> str:
    """Return the CPU's model: libraries such as MKL choose their kernels by it."""
    import platform

    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        model = ""
    return model or platform.processor() or platform.machine()
