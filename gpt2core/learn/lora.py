"""Low-rank adaptation (Hu et al. 2021): weights are frozen, and a low-rank adapter per linear layer is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LoRALayer(nn.Module):
    """The adapter x Aᵀ Bᵀ · alpha / rank. B is initialized with zeros, so that nothing changes at first.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output.
        rank: rows of A and columns of B; the adapter has rank · (in_dim + out_dim) parameters.
        alpha: scale of the adapter; divided by the rank, so that another rank needs no other learning rate.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_dim))
        self.B = nn.Parameter(torch.zeros(out_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as nn.Linear starts
        self.scaling = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapter's output: [..., in_dim] -> [..., out_dim]."""
        return x @ self.A.T @ self.B.T * self.scaling


class LinearWithLoRA(nn.Module):
    """A frozen linear layer and its adapter."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha).to(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus the adapter's: [..., in_dim] -> [..., out_dim]."""
        return self.linear(x) + self.lora(x)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear layer with W + B A · alpha / rank."""
        self.linear.weight += self.lora.B @ self.lora.A * self.lora.scaling
        return self.linear.requires_grad_(True)


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a model and add an adapter to each linear layer of its blocks, in place; the output layer has none."""
    model.requires_grad_(False)
    for parent in list(model.get_submodule("trf_blocks").modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(parent, LinearWithLoRA):
                setattr(parent, name, LinearWithLoRA(child, rank, alpha))


def merge_lora(model: nn.Module) -> None:
    """Merge every adapter into its linear layer, in place: the model is a plain one again, all of it trainable."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LinearWithLoRA):
                setattr(parent, name, child.merged())
    model.requires_grad_(True)
