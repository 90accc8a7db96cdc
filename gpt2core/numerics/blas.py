"""The library that computes NumPy's matrix products."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy  # noqa: F401  # loads the library

from gpt2core.errors import UserError

if TYPE_CHECKING:
    from threadpoolctl import LibController


def numpy_blas() -> LibController:
    """Return NumPy's OpenBLAS, to set its number of threads: its environment variable cannot exceed the cores.

    Raises:
        UserError: NumPy is built with another library.
    """
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(internal_api="openblas").lib_controllers
    numpy_library = next((library for library in libraries if "numpy" in Path(library.filepath).parent.name), None)
    if numpy_library is None:
        raise UserError(
            "numerics: 'portable' needs NumPy with OpenBLAS, as its wheels on PyPI have it; install requirements.lock, "
            "or take numerics: native"
        )
    return numpy_library
