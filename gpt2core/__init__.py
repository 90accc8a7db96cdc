"""gpt2core: GPT-2 from scratch, and the pipeline that trains, fine-tunes and judges it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gpt2core.weights.model_dir import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`gpt2core.load`, imported when first asked for: importing the package imports nothing heavy."""
    if name == "load":
        from gpt2core.weights.model_dir import load

        return load
    raise AttributeError(f"module 'gpt2core' has no attribute {name!r}")
