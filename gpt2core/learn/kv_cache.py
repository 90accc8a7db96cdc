"""The key-value cache by hand: a token's keys and values never change, so they are computed once.

Shapes: B batch, T new tokens, S tokens so far with the new ones, C channels, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt2core.learn.gpt import CausalSelfAttention, GPTModel

Past = tuple[Tensor, Tensor]  # keys and values of a layer, [B, H, S, D] each


def cached_attention(attention: CausalSelfAttention, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
    """Let new tokens [B, T, C] attend to themselves and the past; return [B, T, C] and the longer past."""
    q, k, v = (attention.split_heads(linear(x)) for linear in (attention.W_query, attention.W_key, attention.W_value))
    if past is not None:
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)  # [B, H, S, D]
    T, S = q.size(2), k.size(2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # [B, H, T, S]
    # Row t of the mask is position S - T + t of the text: only the last T rows of the causal mask are needed.
    weights = scores.masked_fill(attention.mask[S - T : S, :S], float("-inf")).softmax(dim=-1)  # [B, H, T, S]
    return attention.out_proj((weights @ v).transpose(1, 2).flatten(2)), (k, v)  # [B, T, C]


def cached_logits(model: GPTModel, idx: Tensor, past: list[Past] | None = None) -> tuple[Tensor, list[Past]]:
    """Return logits [B, T, V] of new tokens [B, T] in eval mode, and the past of all layers for the next call."""
    start = past[0][0].size(2) if past else 0
    positions = torch.arange(start, start + idx.size(1))  # [T]
    x = model.tok_emb(idx) + model.pos_emb(positions)  # [B, T, C]
    present = []
    for layer, block in enumerate(model.trf_blocks):
        mixed, layer_past = cached_attention(block.att, block.norm1(x), past[layer] if past else None)
        x = x + mixed
        x = x + block.ff(block.norm2(x))
        present.append(layer_past)
    return model.out_head(model.final_norm(x)), present


@torch.no_grad()
def generate_with_cache(model: GPTModel, idx: Tensor, max_new_tokens: int) -> Tensor:
    """Generate greedily like `generate_text_simple`, but only the newest token goes through the model.

    Prompt and new tokens must fit the context together: [B, P] -> [B, P + max_new_tokens].
    """
    new, past = idx, None
    for _ in range(max_new_tokens):
        logits, past = cached_logits(model, new, past)
        new = logits[:, -1].argmax(dim=-1, keepdim=True)  # [B, 1]
        idx = torch.cat([idx, new], dim=1)
    return idx
