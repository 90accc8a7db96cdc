"""The optimizers. Each parameter group has its peak learning rate as `initial_lr`, as PyTorch's schedulers do."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import nn

from gpt2core.config.optimization import Optimization
from gpt2core.training.muon import Muon

# PyTorch's optimizers keep the compiler out of their methods, and import it for this: 2.4 s of every training. Nothing
# here compiles an optimizer, so its methods are called as they are.
for method in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
    function = inspect.unwrap(getattr(torch.optim.Optimizer, method))
    function.__dynamo_disable = function


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW (Loshchilov and Hutter 2019)."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def new_optimizers(model: nn.Module, params: Optimization) -> list[torch.optim.Optimizer]:
    """Return the optimizers that the params name, for the trainable parameters of `model`."""
    recipe = dict(lr=params.lr, weight_decay=params.weight_decay, beta1=params.beta1, beta2=params.beta2)
    if params.optimizer == "muon":
        return muon_and_adamw(model, muon_lr=params.muon_lr, **recipe)
    return [adamw(model.parameters(), **recipe)]


def adamw(
    parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, beta1: float = 0.9, beta2: float
) -> torch.optim.AdamW:
    """Return AdamW, fused, for the trainable ones of the parameters.

    Only matrices decay, not biases and norms.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay, "initial_lr": lr},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0, "initial_lr": lr},
    ]
    return AdamW(groups, lr=lr, betas=(beta1, beta2), fused=True)


def muon_and_adamw(
    model: nn.Module, *, muon_lr: float, lr: float, weight_decay: float, beta1: float, beta2: float
) -> list[torch.optim.Optimizer]:
    """Return Muon (Jordan et al. 2024) for the matrices of the blocks, and AdamW for the other trainable parameters.

    Muon makes each update an orthogonal matrix, so that all directions of a layer learn equally fast.
    """
    hidden = [p for name, p in model.named_parameters() if ".h." in name and p.dim() == 2 and p.requires_grad]
    chosen = {id(parameter) for parameter in hidden}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    if not hidden:  # a head alone is trained
        return [adamw(rest, lr=lr, weight_decay=weight_decay, beta1=beta1, beta2=beta2)]
    muon = Muon([{"params": hidden, "initial_lr": muon_lr}], lr=muon_lr, weight_decay=weight_decay)
    if not any(parameter.requires_grad for parameter in rest):  # adapters alone are trained
        return [muon]
    return [muon, adamw(rest, lr=lr, weight_decay=weight_decay, beta1=beta1, beta2=beta2)]
