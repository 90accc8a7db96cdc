"""`torch.compile` for the forward and backward passes of a training alone: of the blocks, and of the loss.

A compiled forward pass is an attribute of the block, which hides that of its class: no parameter changes its name, and
one compilation serves all blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from gpt2core.model.gpt import GPT, Block


@contextlib.contextmanager
def compiled_blocks(model: nn.Module, is_enabled: bool = True) -> Iterator[None]:
    """Run the model's blocks compiled until the `with` block ends."""
    blocks = _blocks(model) if is_enabled else []
    for block in blocks:
        block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
    language_models = [module for module in model.modules() if isinstance(module, GPT) and is_enabled]
    for module in language_models:
        module.is_loss_compiled = True
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
        for module in language_models:
            del module.is_loss_compiled


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run them uncompiled meanwhile: an evaluation has inputs of many shapes, each of which would be compiled."""
    compiled = [(block, vars(block).pop("forward")) for block in _blocks(model) if "forward" in vars(block)]
    try:
        yield
    finally:
        for block, forward in compiled:
            block.forward = forward  # type: ignore[method-assign]


def _blocks(model: nn.Module) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]
