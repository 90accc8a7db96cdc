"""Low-rank adaptation (Hu et al. 2021): the weights stay, and a thin detour beside each linear layer learns."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LoRALayer(nn.Module):
    """x Aᵀ Bᵀ · alpha / rank. B begins with zeros, so that at first nothing changes.

    Args:
        in_dim, out_dim: channels.
        rank: rows of A and columns of B; the detour has rank · (in_dim + out_dim) weights.
        alpha: the size of the detour; divided by the rank, so that another rank needs no other learning rate.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_dim))
        self.B = nn.Parameter(torch.zeros(out_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as nn.Linear begins
        self.scaling = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] -> [..., out_dim]"""
        return x @ self.A.T @ self.B.T * self.scaling


class LinearWithLoRA(nn.Module):
    """A frozen linear layer and its detour."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha).to(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] -> [..., out_dim]"""
        return self.linear(x) + self.lora(x)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that does both: W + B A · alpha / rank."""
        self.linear.weight += self.lora.B @ self.lora.A * self.lora.scaling
        return self.linear.requires_grad_(True)


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a model and put a detour beside each linear layer of its blocks, in place. The output layer has none."""
    model.requires_grad_(False)
    for parent in list(model.get_submodule("trf_blocks").modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(parent, LinearWithLoRA):
                setattr(parent, name, LinearWithLoRA(child, rank, alpha))


def merge_lora(model: nn.Module) -> None:
    """Fold every detour into its linear layer, in place: the model is a plain one again, all of it trainable."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LinearWithLoRA):
                setattr(parent, name, child.merged())
    model.requires_grad_(True)
