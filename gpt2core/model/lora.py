"""Low-rank adaptation (Hu et al. 2021): weights are frozen, and low-rank adapters next to linear layers are trained.

    y = W x + b + alpha / rank · B A dropout(x)

with A [rank, in] and B [out, rank], zeros at first, so that nothing changes. After training, W + alpha / rank · B A is
one matrix again. `gpt2core/learn/lora.py` has the shortest form of it; a test checks that both are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2core.errors import UserError
from gpt2core.model.classifier import GPTClassifier
from gpt2core.model.gpt import GPT
from gpt2core.model.quantized import QuantizedLinear

TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # the linear layers of a block


class LoRALinear(nn.Module):
    """A frozen linear layer and its adapter.

    Args:
        base: the layer; it is no longer trained.
        rank: rows of A and columns of B; the adapter has rank · (in + out) parameters.
        alpha: scale of the adapter; divided by the rank, so that another rank needs no other learning rate.
        dropout: fraction of the adapter's inputs that is dropped in training.
    """

    def __init__(self, base: nn.Linear | QuantizedLinear, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.base = base.requires_grad_(False)
        A = torch.empty(rank, base.in_features)  # drawn on the CPU: the same on every device
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # as nn.Linear starts
        device = base.weight.device
        self.lora_A = nn.Parameter(A.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus the adapter's: [..., in] -> [..., out]."""
        return self.base(x) + F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B) * self.scaling

    @torch.no_grad()
    def merged(self, weight: Tensor) -> nn.Linear:
        """Return one linear layer with `weight` [out, in] + alpha / rank · B A, and the bias."""
        adapter = self.lora_B @ self.lora_A * self.scaling  # [out, in]
        return _plain(weight.to(adapter.device, copy=True).add_(adapter), self.base.bias)


def add_lora(
    model: GPT | GPTClassifier, *, rank: int, alpha: float, dropout: float, targets: Sequence[str] = TARGETS
) -> None:
    """Add adapters next to the `targets` of every block, in place; see `LoRALinear`.

    Which other parameters are trained does not change.

    Raises:
        UserError: a target is unknown.
    """
    if unknown := set(targets) - set(TARGETS):
        raise UserError(f"lora_targets: {min(unknown)!r} is not known; allowed: {', '.join(TARGETS)}")
    for block in model.transformer.h:
        for target in sorted(targets):  # sorted: their order in the params does not change the initial weights
            parent, _, name = target.partition(".")
            module = block.get_submodule(parent)
            setattr(module, name, LoRALinear(getattr(module, name), rank, alpha, dropout))


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield the names of layers with an adapter, such as `transformer.h.0.attn.c_attn`, and the layers."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def merge_lora(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> None:
    """Merge the adapters into a plain model, in place, all of it trainable.

    A model with rounded weights (see `quantized.py`) needs the unrounded `weights` of the base, by name.
    """
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, LoRALinear):
            weight = weights[f"{name}.weight"] if weights else module.base.weight
            setattr(model.get_submodule(parent), child, module.merged(weight))
        elif weights and isinstance(module, QuantizedLinear) and child != "base":  # rounded, but without an adapter
            setattr(model.get_submodule(parent), child, _plain(weights[f"{name}.weight"], module.bias))
    model.requires_grad_(True)


def _plain(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with a weight [out, in] and a bias [out]."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach())
    return linear
