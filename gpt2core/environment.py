"""Environment variables, among them those that `numerics: portable` needs. Imports neither PyTorch nor NumPy.

Every stage calls `prepare` before it imports anything that computes, also the stages that compute no floats, so this
module is apart from `gpt2core.numerics`.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

from gpt2core.config.top_level import Numerics

# PyTorch, NumPy, SciPy and scikit-learn read these variables once, while they load. How a sum is divided among threads
# decides its last bits, so their thread pools get one thread each, and `kernels` divides work between two threads,
# whatever the number of cores. They sleep while they wait, so that busy neighbors cost little.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "MKL_CBWR": "AVX2,STRICT",  # MKL, where PyTorch still calls it
    "MKL_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's and SciPy's matrix products
    "OPENBLAS_NUM_THREADS": "1",  # `kernels` gives NumPy's a second one for large products
    "OPENBLAS_THREAD_TIMEOUT": "16",  # 2^16 cycles, 25 µs, of spinning before an idle thread sleeps; by default 2^26
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # what NumPy would use beyond AVX2
    "OMP_NUM_THREADS": "1",
}
# NumPy refuses to start if features are both enabled and disabled by the environment.
UNSET = ("NPY_ENABLE_CPU_FEATURES",)
LIBRARIES = ("numpy", "scipy", "sklearn", "torch")

_prepared: Numerics | None = None


def prepare(mode: Numerics) -> None:
    """Set the environment variables of a mode. They override those that the user has set; `native` sets none.

    Raises:
        RuntimeError: a library that reads them is already loaded, and the process was not started with them.
    """
    global _prepared
    if mode == "portable" and has_avx2():
        is_set = os.environ.items() >= ENVIRONMENT.items() and not os.environ.keys() & set(UNSET)  # a process of Ray
        if not is_set and (loaded := [name for name in LIBRARIES if name in sys.modules]):
            raise RuntimeError(f"numerics: prepare('portable') was called after {', '.join(loaded)} had been imported")
        os.environ.update(ENVIRONMENT)
        for name in UNSET:
            os.environ.pop(name, None)
    _prepared = mode


def prepared_mode() -> Numerics | None:
    """Return the mode that `prepare` was called with."""
    return _prepared


def is_off(name: str) -> bool:
    """Return whether a variable is set to `off` or a similar word."""
    return os.environ.get(name, "").lower() in ("off", "0", "false", "no")


def has_avx2() -> bool:
    """Return whether this is Linux on x86-64 with AVX2."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return re.search(r"^flags\b.*\bavx2\b", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE) is not None
