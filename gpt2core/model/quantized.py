"""Linear layers that never learn, in two bytes a weight, one or half a byte (Dettmers et al. 2023, "QLoRA").

| dtype    | bits a weight | what is rounded                                                                    |
|----------|---------------|------------------------------------------------------------------------------------|
| bfloat16 | 16            | weights, to 8 bits of precision                                                    |
| int8     | 8             | weights, to 255 steps from -m to m, the largest value m of each output             |
| nf4      | 4.5           | weights, to 16 levels from -m to m, the largest value m of each 64 that are stored |

A layer's weights are as wide as the input only while its product is computed, forward and again backward. Neither
embeddings nor norms are touched: of GPT-2 1558M's weights 95% are in these layers.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

QuantizedDtype = Literal["bfloat16", "int8", "nf4"]
ROWS = 256  # of a layer's weights, rounded at once
NF4_BLOCK = 64  # weights that share a scale: 4 + 32 / 64 bits each
NF4_BLOCKS = 1 << 12  # converted at once, for the reason that `rounded` gives


class QuantizedLinear(nn.Module):
    """`nn.Linear` without gradients of its own weights; those of its input are exact for the rounded weights.

    Args:
        linear: is not changed; its weights are copied.
        dtype: see the module's table.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, dtype: QuantizedDtype):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = rounded(linear.weight.detach(), dtype)
        self.register_buffer("weight", weight)  # [out, in]; nf4: two weights a byte, flat
        self.register_buffer("scale", scale)  # [out]; nf4: of each block
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())  # [out]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        nf4_scale = self.scale if self.weight.dtype == torch.uint8 else None
        shape = (self.out_features, self.in_features)
        y = _QuantizedProduct.apply(x, self.weight, nf4_scale, shape, dtype)  # type: ignore[no-untyped-call]
        if self.weight.dtype == torch.int8 and self.scale is not None:
            y = y * self.scale.to(dtype)
        return y if self.bias is None else y + self.bias.to(dtype)


class _QuantizedProduct(torch.autograd.Function):
    """x Wᵀ that keeps W for the backward pass as it is, not as wide as x. With block scales W is 4-bit."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, nf4_scale: Tensor | None, shape: tuple[int, int], dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(weight, nf4_scale)
        ctx.dtype, ctx.shape = x.dtype, shape
        return F.linear(x.to(dtype), _wide(weight, nf4_scale, shape, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        weight, nf4_scale = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        wide = _wide(weight, nf4_scale, ctx.shape, grad.dtype)  # [out, in]
        return (grad @ wide).to(ctx.dtype), None, None, None, None


def _wide(weight: Tensor, nf4_scale: Tensor | None, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix to multiply by, [out, in]."""
    return weight.to(dtype) if nf4_scale is None else from_nf4(weight, nf4_scale, shape, dtype)


def rounded(weight: Tensor, dtype: QuantizedDtype) -> tuple[Tensor, Tensor | None]:
    """[out, in] float32 -> the weights in `dtype` and what they are to be multiplied by: for int8 each row, [out], for
    nf4 each block (see `to_nf4`).

    A few rows at a time: what is large and short-lived leaves holes in the memory between the layers, which took 2 GB
    of 1558M.
    """
    if dtype == "nf4":
        return to_nf4(weight)
    made = torch.empty(weight.shape, dtype=getattr(torch, dtype), device=weight.device)
    scales = torch.empty(len(weight), device=weight.device)
    for own, some, scale in zip(made.split(ROWS), weight.split(ROWS), scales.split(ROWS), strict=True):
        if dtype == "int8":
            some = some / scale.copy_(int8_scales(some))[:, None]
            some.round_()
        own.copy_(some)
    return made, scales if dtype == "int8" else None


def int8_scales(weight: Tensor) -> Tensor:
    """The largest absolute value of each row as 127 steps; a row of zeros has a step, too: [out, in] -> [out]"""
    return (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)


@cache
def nf4_levels() -> tuple[float, ...]:
    """The 16 levels of NormalFloat: of normally distributed weights about as many lie near each (QLoRA, section 3).

    Quantiles of the normal distribution at equal steps of probability, 7 below zero and 8 above, and zero, which stays
    exact; the outermost are -1 and 1.
    """
    p = 1 - (1 / 32 + 1 / 30) / 2  # half a step from the end, on average of 16 levels and of 15
    quantile = NormalDist().inv_cdf
    below = [-quantile(p + (0.5 - p) * i / 7) for i in range(7)]
    above = [quantile(p + (0.5 - p) * i / 8) for i in range(8)]
    return tuple(level / quantile(p) for level in (*below, 0.0, *reversed(above)))


def to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights, read row by row, as the nearest levels of their blocks of `NF4_BLOCK`: [out, in] -> numbers of levels,
    two a byte, the first in the upper half [n_blocks * NF4_BLOCK / 2], and each block's largest absolute value
    [n_blocks]. Zeros fill the last block."""
    n_blocks = -(-weight.numel() // NF4_BLOCK)
    packed = torch.empty(n_blocks, NF4_BLOCK // 2, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(n_blocks, device=weight.device)
    levels = torch.tensor(nf4_levels(), device=weight.device)
    edges = (levels[1:] + levels[:-1]) / 2  # [15]
    rows = NF4_BLOCK * max(1, NF4_BLOCKS // weight.size(1))  # at once: their weights are whole blocks
    first = 0
    for some in weight.split(rows):
        flat = some.reshape(-1).float()
        blocks = F.pad(flat, (0, -len(flat) % NF4_BLOCK)).view(-1, NF4_BLOCK)
        last = first + len(blocks)
        # A block of zeros has a scale, too.
        scale = blocks.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)  # [blocks]
        codes = torch.bucketize(blocks / scale[:, None], edges, out_int32=True).to(torch.uint8)  # [blocks, NF4_BLOCK]
        packed[first:last], scales[first:last] = codes[:, ::2] << 4 | codes[:, 1::2], scale
        first = last
    return packed.view(-1), scales


def from_nf4(packed: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """What `to_nf4` stored, computed in float32 -> [out, in] in `dtype`"""
    levels = _levels_of_bytes(packed.device)
    wide = torch.empty(len(scales), NF4_BLOCK, dtype=dtype, device=packed.device)
    some_bytes = packed.view(-1, NF4_BLOCK // 2).split(NF4_BLOCKS)
    for own, some, scale in zip(wide.split(NF4_BLOCKS), some_bytes, scales.split(NF4_BLOCKS), strict=True):
        own.copy_(levels.index_select(0, some.flatten().int()).view(-1, NF4_BLOCK).mul_(scale[:, None]))
    return wide.view(-1)[: shape[0] * shape[1]].view(shape)


@cache
def _levels_of_bytes(device: torch.device) -> Tensor:
    """[256, 2]"""
    levels = torch.tensor(nf4_levels(), device=device)
    return torch.cartesian_prod(levels, levels)


def quantize_linears(blocks: nn.Module, dtype: QuantizedDtype) -> None:
    """Replace every linear layer in `blocks`, in place."""
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, QuantizedLinear(child, dtype))
