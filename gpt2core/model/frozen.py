"""Linear layers that never learn, in two bytes a weight or one (Dettmers et al. 2023, "QLoRA", has the idea).

| dtype    | bytes a weight | what is rounded                                                       |
|----------|----------------|-----------------------------------------------------------------------|
| bfloat16 | 2              | weights, to 8 bits of precision                                       |
| int8     | 1              | weights, to 255 steps from -m to m, the largest value m of each output |

A layer's weights are as wide as the input only while its product is computed, forward and again backward. Neither
embeddings nor norms are touched: of GPT-2 1558M's weights 95% are in these layers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FrozenDtype = Literal["bfloat16", "int8"]
ROWS = 256  # of a layer's weights, rounded at once


class FrozenLinear(nn.Module):
    """`nn.Linear` without gradients of its own weights; those of its input are exact for the rounded weights.

    Args:
        linear: is not changed; its weights are copied.
        dtype: see the module's table.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, dtype: FrozenDtype):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = rounded(linear.weight.detach(), dtype)
        self.register_buffer("weight", weight)  # [out, in]
        self.register_buffer("scale", scale)  # [out]
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())  # [out]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        y = _FrozenProduct.apply(x, self.weight, dtype)  # type: ignore[no-untyped-call]
        if self.scale is not None:
            y = y * self.scale.to(dtype)
        return y if self.bias is None else y + self.bias.to(dtype)


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ that keeps W for the backward pass as it is, not as wide as x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return F.linear(x.to(dtype), weight.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return (grad @ weight.to(grad.dtype)).to(ctx.dtype), None, None


def rounded(weight: Tensor, dtype: FrozenDtype) -> tuple[Tensor, Tensor | None]:
    """[out, in] float32 -> the weights in `dtype` and, for int8, what each row is to be multiplied by: [out]

    A few rows at a time: what is large and short-lived leaves holes in the memory between the layers, which took 2 GB
    of 1558M.
    """
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


def freeze_linears(blocks: nn.Module, dtype: FrozenDtype) -> None:
    """Replace every linear layer in `blocks`, in place."""
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, FrozenLinear(child, dtype))
