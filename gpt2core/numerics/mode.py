"""The mode of a process, and the environment variables that it needs. Imports neither PyTorch nor NumPy."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from pathlib import Path

from gpt2core.config import Numerics
from gpt2core.errors import UserError

# PyTorch, NumPy, SciPy and scikit-learn read these variables once, while they load. How a sum is divided among threads
# decides its last bits, so their thread pools get one thread each, and `kernels` divides work between two threads,
# whatever the number of cores. They sleep while they wait, so that busy neighbors cost little.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "MKL_CBWR": "AVX2,STRICT",  # MKL, where PyTorch still calls it
    "MKL_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's and SciPy's matrix products
    "OPENBLAS_NUM_THREADS": "1",  # `kernels` gives NumPy's a second one
    "OPENBLAS_THREAD_TIMEOUT": "16",  # 2^16 cycles, 25 µs, of spinning before an idle thread sleeps; by default 2^26
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # what NumPy would use beyond AVX2
    "OMP_NUM_THREADS": "1",
}
# NumPy refuses to start if features are both enabled and disabled by the environment.
UNSET = ("NPY_ENABLE_CPU_FEATURES",)
LIBRARIES = ("numpy", "scipy", "sklearn", "torch")

_prepared: Numerics | None = None
_is_portable = False
_has_warned = False


def prepare(mode: Numerics) -> None:
    """Set the environment variables of a mode. They override those that the user has set; `native` sets none.

    Raises:
        RuntimeError: a library that reads them is already loaded.
    """
    global _prepared
    if mode == "portable" and has_avx2():
        if loaded := [name for name in LIBRARIES if name in sys.modules]:
            raise RuntimeError(f"numerics: prepare('portable') was called after {', '.join(loaded)} had been imported")
        os.environ.update(ENVIRONMENT)
        for name in UNSET:
            os.environ.pop(name, None)
    _prepared = mode


def start(mode: Numerics, with_torch: bool = True) -> None:
    """Make this process compute as `mode` says. Call it before the first result; further calls change nothing.

    For `portable` it replaces the PyTorch kernels that depend on the CPU and runs the probe. Where the bytes cannot be
    promised (a GPU, Arm, a CPU without AVX2), it warns once instead.

    Args:
        mode: `numerics` of the params.
        with_torch: whether this process computes with PyTorch, which takes a second to import.

    Raises:
        UserError: the probe gives other bits than it should, or the process was not prepared for this mode.
    """
    global _is_portable, _has_warned
    if mode == "native" or _is_portable or _has_warned:
        return
    if _prepared != mode:
        raise UserError(
            "numerics: 'portable' must be set up before PyTorch loads; run a stage as python -m stages.NAME"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("numerics: 'portable' computes in one process; take numerics: native, or launcher: python")
    from gpt2core import runtime

    device = runtime.device().type if with_torch else "cpu"
    if device != "cpu" or not has_avx2():
        where = "an x86-64 CPU with AVX2"
        machine = device if device != "cpu" else f"{platform.machine()} CPU"
        runtime.say(f"warning: numerics: portable: this {machine} gives other bytes than {where}")
        _has_warned = True
        return
    from gpt2core.numerics import blas, probe

    blas.numpy_blas().set_num_threads(2)
    if with_torch:
        from gpt2core.numerics import kernels

        kernels.install()
    probe.check(with_torch)
    _is_portable = True


def is_portable() -> bool:
    """Whether the results of this process have the same bytes on every x86-64 CPU with AVX2."""
    return _is_portable


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Compute on one thread, since another process uses the second core. `start` must have been called."""
    from gpt2core.numerics import kernels

    return kernels.one_thread()


def has_avx2() -> bool:
    """Whether this is Linux on x86-64 with AVX2."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return re.search(r"^flags\b.*\bavx2\b", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE) is not None
