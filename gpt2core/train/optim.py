"""The optimizer."""

from __future__ import annotations

import torch
from torch import nn


def adamw(model: nn.Module, *, lr: float, weight_decay: float, beta1: float = 0.9, beta2: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused; only matrices decay, not biases and norms. Frozen weights stay out."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), fused=True)
