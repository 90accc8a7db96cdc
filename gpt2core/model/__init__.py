"""GPT-2 (Radford et al. 2019), from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt2core.model.config import GPTConfig

if TYPE_CHECKING:
    from gpt2core.model.classifier import GPTClassifier
    from gpt2core.model.gpt import GPT

__all__ = ["GPT", "GPTClassifier", "GPTConfig"]


def __getattr__(name: str) -> Any:
    """Import a model when it is first used: `gpt2core convert`, which needs only sizes, needs no torch."""
    if name == "GPT":
        from gpt2core.model.gpt import GPT

        return GPT
    if name == "GPTClassifier":
        from gpt2core.model.classifier import GPTClassifier

        return GPTClassifier
    raise AttributeError(f"module 'gpt2core.model' has no attribute {name!r}")
