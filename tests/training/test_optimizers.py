"""The optimizers: PyTorch's results, without its compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from gpt2core.training.optimizers import adamw

ONE_STEP = """
import sys
from torch import nn
from gpt2core.config.pretrain import Pretrain
from gpt2core.training.optimizers import new_optimizers

model = nn.Sequential()
model.h = nn.ModuleList([nn.Linear(4, 4)])
model.head = nn.Linear(4, 4)
for optimizer in new_optimizers(model, Pretrain(**{FIELDS})):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = parameter.detach().clone()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
sys.exit("torch._dynamo" in sys.modules)
"""
FIELDS = dict(optimizer="muon", lr=0.1, muon_lr=0.1, weight_decay=0.1, beta1=0.9, beta2=0.95)


def test_no_optimizer_imports_the_compiler() -> None:
    """It takes as long to import as PyTorch itself."""
    subprocess.run([sys.executable, "-c", ONE_STEP.replace("{FIELDS}", repr(FIELDS))], check=True)


def test_adamw_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours = nn.Linear(8, 3)
    theirs = nn.Linear(8, 3)
    theirs.load_state_dict(ours.state_dict())
    groups = [{"params": [theirs.weight], "weight_decay": 0.2}, {"params": [theirs.bias], "weight_decay": 0.0}]
    optimizers = [
        adamw(ours.parameters(), lr=0.03, weight_decay=0.2, beta2=0.95),
        torch.optim.AdamW(groups, lr=0.03, betas=(0.9, 0.95), fused=True),
    ]
    for _ in range(5):
        x = torch.randn(4, 8)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).pow(2).sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
