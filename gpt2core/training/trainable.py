"""Which parts of a model learn."""

from __future__ import annotations

from torch import nn

from gpt2core.config.lora import Lora
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.model.lora import add_lora


def freeze_except(model: GPT | GPTClassifier, trainable: str) -> None:
    """Freeze the rest. A classifier's head always learns, the final norm but for `lora`, a language head with `all`.

    Args:
        trainable: head, last_block, last_two_blocks, blocks (all but the embeddings), all, or lora: only what
            `add_detours` adds.
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
    """How many blocks, from the first on, do not learn (nor the embeddings below them)."""
    learning = {"head": 0, "last_block": 1, "last_two_blocks": 2}.get(trainable, sizes.n_layer)
    return max(0, sizes.n_layer - learning)


def add_adapters(model: GPT | GPTClassifier, params: Lora) -> None:
    """Those of `trainable: lora`, as the params describe them; their first weights are drawn at random."""
    add_lora(
        model, rank=params.lora_rank, alpha=params.lora_alpha, dropout=params.lora_dropout, targets=params.lora_targets
    )


def trainable_parameters(model: nn.Module) -> int:
    """How many weights learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
