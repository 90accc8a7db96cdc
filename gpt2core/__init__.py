"""GPT-2 from scratch, and the pipeline that trains, fine-tunes, and evaluates it.

import gpt2core

model, tokenizer = gpt2core.load("models/pretrained")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gpt2core.checkpoint.model_dir import load, load_classifier, load_language_model, save_model
    from gpt2core.errors import UserError
    from gpt2core.inference import Sampling, generate, generate_batch, stream
    from gpt2core.inference.classify import Prediction, classify
    from gpt2core.inference.respond import respond
    from gpt2core.model import GPT, GPTClassifier, GPTConfig
    from gpt2core.tokenizer import Tokenizer

# The public API: each name, and the module that has it. A module is imported when a name of it is first used, so that
# `import gpt2core` imports neither PyTorch nor anything else that is large.
_MODULES = {
    "GPT": "model",
    "GPTClassifier": "model",
    "GPTConfig": "model",
    "Prediction": "inference.classify",
    "Sampling": "inference",
    "Tokenizer": "tokenizer",
    "UserError": "errors",
    "classify": "inference.classify",
    "generate": "inference",
    "generate_batch": "inference",
    "load": "checkpoint.model_dir",
    "load_classifier": "checkpoint.model_dir",
    "load_language_model": "checkpoint.model_dir",
    "respond": "inference.respond",
    "save_model": "checkpoint.model_dir",
    "stream": "inference",
}

__all__ = [
    "GPT", "GPTClassifier", "GPTConfig", "Prediction", "Sampling", "Tokenizer", "UserError", "__version__", "classify",
    "generate", "generate_batch", "load", "load_classifier", "load_language_model", "respond", "save_model", "stream",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a name of the public API when it is first used."""
    if name in _MODULES:
        return getattr(import_module(f"gpt2core.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'gpt2core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
