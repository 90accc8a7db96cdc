"""Language models of model directories, ready for decoding."""

from __future__ import annotations

import os

from gpt2core import runtime
from gpt2core.checkpoint.model_dir import load_language_model
from gpt2core.model.inference import Packed, pack
from gpt2core.tokenizer import Tokenizer


def load_for_decoding(path: str | os.PathLike[str], dtype: str = "float32") -> tuple[Packed, Tokenizer]:
    """Load a language model with its tokenizer on this machine's device, and pack its weights.

    Args:
        path: the model directory.
        dtype: of the weights, see `pack`.

    Raises:
        UserError: as `load_language_model`, or the device does not support the dtype.
    """
    model, tokenizer = load_language_model(path, device=runtime.device())
    return pack(model, dtype), tokenizer
