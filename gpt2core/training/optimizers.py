"""The optimizers. Each group of weights carries its peak learning rate as `initial_lr`, as PyTorch's schedulers do."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from gpt2core.training.muon import Muon


def adamw(
    parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, beta1: float = 0.9, beta2: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused; only matrices decay, not biases and norms. Frozen weights stay out."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay, "initial_lr": lr},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0, "initial_lr": lr},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), fused=True)


def muon_and_adamw(
    model: nn.Module, *, muon_lr: float, lr: float, weight_decay: float, beta1: float, beta2: float
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for embeddings, head, biases and norms.

    Muon makes each update an orthogonal matrix, so that all directions of a layer learn equally fast.
    """
    hidden = [p for name, p in model.named_parameters() if ".h." in name and p.dim() == 2 and p.requires_grad]
    chosen = {id(parameter) for parameter in hidden}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        Muon([{"params": hidden, "initial_lr": muon_lr}], lr=muon_lr, weight_decay=weight_decay),
        adamw(rest, lr=lr, weight_decay=weight_decay, beta1=beta1, beta2=beta2),
    ]
