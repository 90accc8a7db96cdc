"""Text, one token after another: each new token is read again with all tokens before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2core.learn.sampling import draw, keep_top_k, keep_top_p, scale_by_temperature


@torch.no_grad()
def generate_text_simple(model: nn.Module, idx: Tensor, max_new_tokens: int, context_size: int) -> Tensor:
    """Append the likeliest token repeatedly.

    Args:
        model: ids [B, T] to logits [B, T, V], in eval mode.
        idx: [B, P] int64.
        max_new_tokens: number of tokens to append.
        context_size: number of last tokens that the model can see.

    Returns:
        [B, P + max_new_tokens].
    """
    for _ in range(max_new_tokens):
        logits = model(idx[:, -context_size:])[:, -1]  # [B, V]
        idx = torch.cat([idx, logits.argmax(dim=-1, keepdim=True)], dim=1)  # [B, T + 1]
    return idx


@torch.no_grad()
def generate_by_sampling(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Tensor:
    """Append drawn tokens, after temperature, top-k, then top-p: [B, P] -> [B, P + max_new_tokens]."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for _ in range(max_new_tokens):
        logits = scale_by_temperature(model(idx[:, -context_size:])[:, -1], temperature)  # [B, V]
        if top_k is not None:
            logits = keep_top_k(logits, top_k)
        if top_p is not None:
            logits = keep_top_p(logits, top_p)
        idx = torch.cat([idx, draw(logits, generator)[:, None]], dim=1)  # [B, T + 1]
    return idx
