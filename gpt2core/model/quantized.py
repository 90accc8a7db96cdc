"""Frozen linear layers in two bytes per weight, one, or half a byte (Dettmers et al. 2023, "QLoRA").

| dtype    | bits / weight | what is rounded                                                                    |
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
ROWS = 256  # of a layer's weights, rounded together
NF4_BLOCK = 64  # weights with one scale: 4 + 32 / 64 bits per weight
NF4_BLOCKS = 1 << 12  # converted together, for the reason that `rounded` gives


class QuantizedLinear(nn.Module):
    """A copy of an `nn.Linear` with rounded, frozen weights, for which the gradient of its input is exact."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, dtype: QuantizedDtype):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = rounded(linear.weight.detach(), dtype)
        self.register_buffer("weight", weight)  # [out, in]; nf4: two weights per byte, flat
        self.register_buffer("scale", scale)  # [out]; nf4: of each block
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())  # [out]

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: [..., in] -> [..., out]."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        nf4_scale = self.scale if self.weight.dtype == torch.uint8 else None
        shape = (self.out_features, self.in_features)
        y = _QuantizedProduct.apply(x, self.weight, nf4_scale, shape, dtype)  # type: ignore[no-untyped-call]
        if self.weight.dtype == torch.int8 and self.scale is not None:
            y = y * self.scale.to(dtype)
        return y if self.bias is None else y + self.bias.to(dtype)


class _QuantizedProduct(torch.autograd.Function):
    """x Wᵀ that saves the packed W for the backward pass; with block scales W is 4-bit."""

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
    """Return the matrix [out, in] in the dtype of the product."""
    return weight.to(dtype) if nf4_scale is None else from_nf4(weight, nf4_scale, shape, dtype)


def rounded(weight: Tensor, dtype: QuantizedDtype) -> tuple[Tensor, Tensor | None]:
    """Return the weights [out, in] in `dtype` and their scales: for int8 [out], for nf4 one per block (see `to_nf4`).

    A few rows are rounded at a time: large temporary tensors would leave holes in the memory between the layers, 2 GB
    for 1558M.
    """
    if dtype == "nf4":
        return to_nf4(weight)
    codes = torch.empty(weight.shape, dtype=getattr(torch, dtype), device=weight.device)
    scales = torch.empty(len(weight), device=weight.device)
    for out, rows, scale in zip(codes.split(ROWS), weight.split(ROWS), scales.split(ROWS), strict=True):
        if dtype == "int8":
            rows = rows / scale.copy_(int8_scales(rows))[:, None]
            rows.round_()
        out.copy_(rows)
    return codes, scales if dtype == "int8" else None


def int8_scales(weight: Tensor) -> Tensor:
    """Return a 127th of the largest absolute value of each row [out, in] -> [out]; rows of zeros get a positive one."""
    return (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)


@cache
def nf4_levels() -> tuple[float, ...]:
    """Return the 16 levels of NormalFloat, each nearest to about as many normal weights (QLoRA, section 3).

    The levels are quantiles of the normal distribution at equal steps of probability, 7 below zero and 8 above, and an
    exact zero; the outermost are -1 and 1.
    """
    p = 1 - (1 / 32 + 1 / 30) / 2  # half a step from the end, on average of 16 levels and of 15
    quantile = NormalDist().inv_cdf
    below = [-quantile(p + (0.5 - p) * i / 7) for i in range(7)]
    above = [quantile(p + (0.5 - p) * i / 8) for i in range(8)]
    return tuple(level / quantile(p) for level in (*below, 0.0, *reversed(above)))


def to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights [out, in] to the nearest levels, in blocks of `NF4_BLOCK` read row by row; zeros fill the last one.

    Returns:
        Numbers of levels, two per byte, the first in the upper half, [n_blocks * NF4_BLOCK / 2] uint8; and the largest
        absolute value of each block, [n_blocks].
    """
    n_blocks = -(-weight.numel() // NF4_BLOCK)
    packed = torch.empty(n_blocks, NF4_BLOCK // 2, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(n_blocks, device=weight.device)
    levels = torch.tensor(nf4_levels(), device=weight.device)
    edges = (levels[1:] + levels[:-1]) / 2  # [15]
    n_rows = NF4_BLOCK * max(1, NF4_BLOCKS // weight.size(1))  # per chunk: their weights are whole blocks
    first = 0
    for rows in weight.split(n_rows):
        flat = rows.reshape(-1).float()
        blocks = F.pad(flat, (0, -len(flat) % NF4_BLOCK)).view(-1, NF4_BLOCK)
        last = first + len(blocks)
        # A block of zeros has a positive scale.
        scale = blocks.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)  # [blocks]
        codes = torch.bucketize(blocks / scale[:, None], edges, out_int32=True).to(torch.uint8)  # [blocks, NF4_BLOCK]
        packed[first:last], scales[first:last] = codes[:, ::2] << 4 | codes[:, 1::2], scale
        first = last
    return packed.view(-1), scales


def from_nf4(packed: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the weights [out, in] in `dtype` that `to_nf4` stored, computed in float32."""
    levels = _levels_of_bytes(packed.device)
    wide = torch.empty(len(scales), NF4_BLOCK, dtype=dtype, device=packed.device)
    chunks = packed.view(-1, NF4_BLOCK // 2).split(NF4_BLOCKS)
    for out, codes, scale in zip(wide.split(NF4_BLOCKS), chunks, scales.split(NF4_BLOCKS), strict=True):
        out.copy_(levels.index_select(0, codes.flatten().int()).view(-1, NF4_BLOCK).mul_(scale[:, None]))
    return wide.view(-1)[: shape[0] * shape[1]].view(shape)


@cache
def _levels_of_bytes(device: torch.device) -> Tensor:
    """Return the two levels of each byte: [256, 2]."""
    levels = torch.tensor(nf4_levels(), device=device)
    return torch.cartesian_prod(levels, levels)


def quantize_linears(blocks: nn.Module, dtype: QuantizedDtype) -> None:
    """Replace every linear layer in `blocks` by a quantized one, in place."""
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, QuantizedLinear(child, dtype))
