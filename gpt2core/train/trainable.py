"""Which parts of a model learn."""

from __future__ import annotations

from gpt2core.model import GPT, GPTClassifier, GPTConfig


def learn_only(model: GPT | GPTClassifier, trainable: str) -> None:
    """Freeze the rest. The final norm and a classifier's head always learn, a language head only with `all`.

    Args:
        trainable: head, last_block, last_two_blocks, blocks (all but the embeddings), or all.
    """
    if trainable == "all":
        return
    transformer = model.transformer
    transformer.requires_grad_(False)
    if isinstance(model, GPT):
        model.lm_head.requires_grad_(False)
    for module in (transformer.ln_f, *transformer.h[frozen_blocks(model.config, trainable) :]):
        module.requires_grad_(True)


def frozen_blocks(config: GPTConfig, trainable: str) -> int:
    """How many blocks, from the first on, do not learn (nor the embeddings below them)."""
    learning = {"head": 0, "last_block": 1, "last_two_blocks": 2}.get(trainable, config.n_layer)
    return max(0, config.n_layer - learning)
