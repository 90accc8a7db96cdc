"""Causal self-attention (Vaswani et al. 2017, section 3.2), written out and by PyTorch's fused kernel.

Shapes: B batch, T tokens of this call, S tokens so far (cache included), C channels, H heads, D = C / H head size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2core.model.config import GPTConfig
from gpt2core.model.kv_cache import LayerCache

MAX_COMPILED = 512  # positions; the scores of longer texts take more memory than the kernel, and soon more time


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ / √D), where position t sees positions up to t only.

    Args:
        q: queries [B, H, T, D] of the last T positions.
        k: keys [B, H, S, D] with S >= T.
        mask: [B, 1, T, S], true where a query may look; causal if absent.

    Returns:
        [B, H, T, S], each row a distribution over the visible positions.
    """
    T, S = q.size(-2), k.size(-2)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)  # [T, S]
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # [B, H, T, S]
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)  # [B, H, T, S]


def attention_written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return `attention_weights` of q and k, times v: the formula that `fused_attention` must equal.

    [B, H, T, D], [B, H, S, D], [B, H, S, D] -> [B, H, T, D]
    """
    return attention_weights(q, k, mask) @ v  # [B, H, T, D]


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Return the same by `scaled_dot_product_attention`, which never holds the [T, S] weights in memory."""
    T, S = q.size(-2), k.size(-2)
    if mask is None and not dropout and T == S and T > 1 and _is_for_compiled_attention(q):
        return compiled_attention(q, k, v)
    # One query sees everything before it; for T == S the kernel has its own causal form; between, a mask.
    if mask is None and T not in (1, S):
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    causal = mask is None and bool(T == S)  # with a dynamic length torch.export gives a symbol, which is refused
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)


def compiled_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the same as `fused_attention` for T == S and no mask, written out for `torch.compile`.

    The second half of the queries needs all keys, the first half only the first half of them. With up to 512 bfloat16
    positions on a CPU, this takes half of the time of PyTorch's kernel (docs/speed.md).
    """
    T = q.size(-2)
    slices = []
    for start, end in ((0, T // 2), (T // 2, T)):
        scores = (q[:, :, start:end] @ k[:, :, :end].transpose(-2, -1)).float() / math.sqrt(q.size(-1))  # [B, H, t, s]
        hidden = torch.full((end - start, end), float("-inf"), device=q.device).triu(start + 1)  # [t, s]
        slices.append((scores + hidden).softmax(dim=-1).to(v.dtype) @ v[:, :, :end])  # [B, H, t, D]
    return torch.cat(slices, dim=2)  # [B, H, T, D]


def _is_for_compiled_attention(q: Tensor) -> bool:
    is_compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return is_compiled and q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.size(-2) <= MAX_COMPILED


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention, with a cache of keys and values while generating."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.attn_pdrop
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, cache: LayerCache | None = None, mask: Tensor | None = None) -> Tensor:
        """Mix the values that each position may see.

        Args:
            x: [B, T, C].
            cache: keys and values of the tokens before these; gets these too.
            mask: [B, 1, T, S], true where a query may look; causal if absent.

        Returns:
            [B, T, C].
        """
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # 3 × [B, H, T, D]
        if cache is not None:
            k, v = cache.append(k, v)  # [B, H, S, D]
        y = fused_attention(q, k, v, mask, self.dropout if self.training else 0.0)  # [B, H, T, D]
        y = y.transpose(1, 2).reshape(B, T, C)  # [B, T, C]
        return self.resid_dropout(self.c_proj(y))

    def forward_at(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return `forward` at one position per row, without queries of the others: [B, T, C], [B] -> [B, C]."""
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        weight, bias = self.c_attn.weight, self.c_attn.bias
        here = x[torch.arange(B, device=x.device), positions]  # [B, C]
        q = F.linear(here, weight[:C], None if bias is None else bias[:C]).view(B, H, 1, D)  # [B, H, 1, D]
        keys_values = F.linear(x, weight[C:], None if bias is None else bias[C:])  # [B, T, 2C]
        k, v = keys_values.view(B, T, 2, H, D).permute(2, 0, 3, 1, 4)  # 2 × [B, H, T, D]
        mask = (torch.arange(T, device=x.device) <= positions[:, None])[:, None, None]  # [B, 1, 1, T]
        y = fused_attention(q, k, v, mask, self.dropout if self.training else 0.0)  # [B, H, 1, D]
        return self.resid_dropout(self.c_proj(y.reshape(B, C)))  # [B, C]
