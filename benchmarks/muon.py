"""A step of Muon beside PyTorch's own, on the matrices of a model's blocks.

python -m benchmarks.muon [--size tiny] [--repeats 5]
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.machine import best_time_s, description
from gpt2core.config.presets import PRESETS
from gpt2core.model import GPT, GPTConfig
from gpt2core.training.muon import Muon


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(PRESETS), default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model = GPT(GPTConfig(vocab_size=256, **PRESETS[arguments.size]))
    matrices = [parameter for name, parameter in model.named_parameters() if ".h." in name and parameter.dim() == 2]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    print(description())
    for name, optimizer in (("gpt2core", Muon), ("torch", torch.optim.Muon)):
        step = optimizer(matrices, lr=0.01).step
        print(f"{name:<9} {best_time_s(step, arguments.repeats):8.3f} s a step ({arguments.size})")


if __name__ == "__main__":
    main()
