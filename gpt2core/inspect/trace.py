"""A forward pass that keeps each block's attention weights and the residual path between blocks.

Shapes: L layers, T tokens, C channels, H heads, D = C / H head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.model.attention import attention_weights
from gpt2core.model.gpt import Block, Transformer

MAX_WEIGHTS = 1 << 23  # attention weights that are kept: 241 tokens of the 124M, 83 of the 1558M


@dataclass(frozen=True)
class Trace:
    """Intermediate results of a transformer for one text.

    Args:
        hidden: [L + 1, T, C], the residual path before the first block and after each block.
        attention: [L, H, T, T], on the CPU; row t has the weights of position t for positions 0 to t.
    """

    hidden: Tensor
    attention: Tensor


@torch.no_grad()
def trace(transformer: Transformer, ids: Tensor) -> Trace:
    """Run a transformer in eval mode on ids [T].

    Raises:
        UserError: there are no ids, or more than the model's context or `MAX_WEIGHTS` allows.
    """
    config = transformer.config
    T, C, H = len(ids), config.n_embd, config.n_head
    _check_length(T, config.n_positions, config.n_layer * H)
    x = transformer.wte(ids[None]) + transformer.wpe(torch.arange(T, device=ids.device))  # [1, T, C]
    hidden, attention = [x[0]], []
    for block in cast(Iterable[Block], transformer.h):
        # The block computes them again, by a kernel that never holds the weights.
        q, k, _ = block.attn.c_attn(block.ln_1(x)).view(1, T, 3, H, C // H).permute(2, 0, 3, 1, 4)  # 3 × [1, H, T, D]
        attention.append(attention_weights(q, k)[0].float().cpu())  # [H, T, T]
        x = block(x)
        hidden.append(x[0])
    return Trace(torch.stack(hidden), torch.stack(attention))


def _check_length(n_tokens: int, n_positions: int, n_heads: int) -> None:
    if n_tokens == 0:
        raise UserError("there are no tokens to look at; give a prompt")
    if n_tokens > n_positions:
        raise UserError(f"the prompt has {n_tokens} tokens, the model {n_positions} positions; shorten it")
    if n_tokens**2 * n_heads > MAX_WEIGHTS:
        longest = int((MAX_WEIGHTS / n_heads) ** 0.5)
        raise UserError(
            f"the prompt has {n_tokens} tokens; with the {n_heads} heads of this model at most {longest} can be shown, "
            "since each head has a weight for each pair of tokens; shorten it"
        )
