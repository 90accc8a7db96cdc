"""Numerics: `portable` gives the same bytes on every x86-64 CPU with AVX2, `native` is as fast as the machine allows.

    prepare("portable")  # before PyTorch and NumPy load; stages/__init__.py calls it for every stage
    start("portable")    # before the first result; replaces PyTorch's kernels and checks the machine with a probe

docs/repetition.md says what is promised, what was measured, and which operations differ without this package.
"""

from gpt2core.environment import prepare
from gpt2core.numerics.mode import is_portable, one_thread, start

__all__ = ["is_portable", "one_thread", "prepare", "start"]
