"""The mode of a process."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2core import environment
from gpt2core.config.top_level import Numerics
from gpt2core.errors import UserError
from gpt2core.log import logger

if TYPE_CHECKING:
    from threadpoolctl import LibController

_is_portable = False
_has_warned = False


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
    if environment.prepared_mode() != mode:
        raise UserError(
            "numerics: 'portable' must be set up before PyTorch loads; run a stage as python -m stages.NAME"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("numerics: 'portable' computes in one process; take numerics: native, or launcher: python")
    from gpt2core import runtime

    device = runtime.device().type if with_torch else "cpu"
    if device != "cpu" or not environment.has_avx2():
        where = "an x86-64 CPU with AVX2"
        machine = device if device != "cpu" else f"{platform.machine()} CPU"
        logger.warning(f"numerics: portable: this {machine} gives other bytes than {where}")
        _has_warned = True
        return
    from gpt2core.numerics import probe

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


def numpy_blas() -> LibController:
    """Return NumPy's OpenBLAS, to set its number of threads: its environment variable cannot exceed the cores.

    Raises:
        UserError: NumPy is built with another library.
    """
    import numpy  # noqa: F401  # loads the library
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(internal_api="openblas").lib_controllers
    numpy_library = next((library for library in libraries if "numpy" in Path(library.filepath).parent.name), None)
    if numpy_library is None:
        raise UserError(
            "numerics: 'portable' needs NumPy with OpenBLAS, as its wheels on PyPI have it; install requirements.lock, "
            "or take numerics: native"
        )
    return numpy_library
