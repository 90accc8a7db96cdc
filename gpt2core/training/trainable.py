"""Which parameters of a model are trained."""

from __future__ import annotations

from torch import nn

from gpt2core.config.lora import Lora
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.model.lora import add_lora


def freeze_except(model: GPT | GPTClassifier, trainable: str) -> None:
    """Freeze all parameters except the named part.

    A classifier's head is always trained, the final norm except with `lora`, a language model's head only with `all`.

    Args:
        model: its parameters' `requires_grad` is set.
        trainable: head, last_block, last_two_blocks, blocks (all but the embeddings), all, or lora (only the adapters
            that `add_adapters` adds).
    """
    if trainable == "all":
        return
    transformer = model.transformer
    transformer.requires_grad_(False)
    if isinstance(model, GPT):
        model.lm_head.requires_grad_(False)
    if trainable == "lora":
        return
    for module in (transformer.ln_f, *transformer.h[frozen_blocks(model.config, trainable) :]):
        module.requires_grad_(True)


def frozen_blocks(sizes: GPTConfig, trainable: str) -> int:
    """Return the number of blocks, from the first on, that are frozen with the embeddings below them."""
    n_trainable = {"head": 0, "last_block": 1, "last_two_blocks": 2}.get(trainable, sizes.n_layer)
    return max(0, sizes.n_layer - n_trainable)


def add_adapters(model: GPT | GPTClassifier, params: Lora) -> None:
    """Add the LoRA adapters that the params describe; their initial weights are random."""
    add_lora(
        model, rank=params.lora_rank, alpha=params.lora_alpha, dropout=params.lora_dropout, targets=params.lora_targets
    )


def trainable_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
