"""Memory of fine-tuning all weights, and of LoRA over a base in float32, bfloat16, int8, and nf4.

    python -m benchmarks.lora [--size 355M] [--model DIR] [--kinds all float32 bfloat16 int8 nf4]
                              [--batch-size 2] [--tokens 100] [--steps 2]

Each kind runs in a process of its own, which reads the model directory, takes some steps on random ids with AdamW, and
ends. A generated directory has random weights of OpenAI's sizes. Anonymous memory does not include mapped files, such
as the embeddings, which are read from the file itself (4 bytes per weight).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.machine import GB
from gpt2core.checkpoint.model_dir import load
from gpt2core.config.presets import PRESETS
from gpt2core.model import GPT
from gpt2core.model.lora import add_lora
from gpt2core.training.batches import Batch, next_token_batch
from gpt2core.training.instruct import batch_loss
from gpt2core.training.optimizers import adamw
from gpt2core.training.task import Task
from gpt2core.training.trainable import freeze_except, trainable_parameters
from gpt2core.training.trainer import Recipe, fit

KINDS = ("all", "float32", "bfloat16", "int8", "nf4")


def main() -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("--size", choices=list(PRESETS), default="355M")
    parser.add_argument("--model", type=Path, help="a model directory, in place of a generated one")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(steps(arguments.model, arguments.worker, arguments.batch_size, arguments.tokens, arguments.steps))
        return
    print(machine.description())
    with tempfile.TemporaryDirectory() as folder:
        model_dir = arguments.model or generated(arguments.size, Path(folder))
        n_bytes = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
        print(f"{n_bytes / GB:.2f} GB of weights, {arguments.batch_size} × {arguments.tokens} tokens per step")
        for kind in arguments.kinds:
            worker = [sys.executable, "-m", "benchmarks.lora", "--worker", kind, "--model", model_dir]
            sizes = [
                f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("batch-size", "tokens", "steps")
            ]
            used = machine.run_measured([*worker, *sizes])
            name = "all weights" if kind == "all" else f"LoRA, base in {kind}"
            print(f"  {name:<22} {used.peak_anonymous_bytes / GB:5.2f} GB anonymous, {used.time_s:6.1f} s")


def generated(size: str, folder: Path) -> Path:
    """Write a model directory with random weights."""
    checkpoint = machine.random_checkpoint(size, folder)
    subprocess.run([sys.executable, "-m", "gpt2core", "convert", checkpoint, folder / "model"], check=True)
    return folder / "model"


class RepeatedBatch(Task):
    """Predict the next token of the same rows in each step."""

    model: GPT

    def __init__(self, model: GPT, rows: list[list[int]], max_steps: int) -> None:
        super().__init__("benchmark", model, max_steps, seed=0)
        self.rows = rows

    def batch(self, step: int) -> list[Batch]:
        return [next_token_batch(zip(self.rows, self.rows, strict=True), pad_id=0)]

    def loss(self, batch: Batch) -> Tensor:
        return batch_loss(self.model, batch)

    def is_evaluated(self, step: int) -> bool:
        return False

    def evaluate(self, step: int) -> dict[str, float]:
        return {}


def steps(model_dir: Path, kind: str, batch_size: int, n_tokens: int, max_steps: int) -> int:
    """Take the steps; return the number of trained parameters."""
    model, _ = load(model_dir, frozen_dtype=None if kind in ("all", "float32") else kind)  # type: ignore[arg-type]
    assert isinstance(model, GPT)
    if kind != "all":
        freeze_except(model, "lora")
        add_lora(model, rank=8, alpha=16.0, dropout=0.0)
    rows = torch.randint(model.config.vocab_size, (batch_size, n_tokens)).tolist()
    optimizer = adamw(model.parameters(), lr=1e-4, weight_decay=0.1, beta2=0.95)
    fit(RepeatedBatch(model, rows, max_steps), Recipe([optimizer], lambda step: 1.0, grad_clip=1.0))
    return trainable_parameters(model)


if __name__ == "__main__":
    main()
