"""Time of a step of Muon compared with PyTorch's own, on the matrices of a model's blocks.

python -m benchmarks.muon [--size tiny] [--repeats 5]
"""

from __future__ import annotations

import torch

from benchmarks.machine import best_time_s, description, new_parser, random_model
from gpt2core.config.presets import PRESETS
from gpt2core.training.muon import Muon


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--size", choices=list(PRESETS), default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model = random_model(arguments.size, vocab_size=256)
    matrices = [parameter for name, parameter in model.named_parameters() if ".h." in name and parameter.dim() == 2]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    print(description())
    for name, optimizer in (("gpt2core", Muon), ("torch", torch.optim.Muon)):
        step = optimizer(matrices, lr=0.01).step
        print(f"{name:<9} {best_time_s(step, arguments.repeats):8.3f} s per step ({arguments.size})")


if __name__ == "__main__":
    main()
