"""`torch.compile` for the training's forward and backward passes alone.

A compiled forward pass lies in a block's instance, where it hides the class's: no name of a weight changes, and one
compilation serves all blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from gpt2core.model import GPT


@contextlib.contextmanager
def compiled_blocks(model: GPT) -> Iterator[None]:
    """Inside, the model's blocks run compiled."""
    blocks = list(model.transformer.h)
    for block in blocks:
        block.forward = torch.compile(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextlib.contextmanager
def uncompiled(model: GPT) -> Iterator[None]:
    """Inside, they do not: for what comes in many shapes, each of which would be compiled anew."""
    kept = [(block, vars(block).pop("forward")) for block in model.transformer.h if "forward" in vars(block)]
    try:
        yield
    finally:
        for block, forward in kept:
            block.forward = forward
