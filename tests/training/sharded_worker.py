"""What `test_sharded_checkpoints.py` runs under torchrun: a sharded training, whose second process may kill itself."""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.distributed.tensor import DTensor

from gpt2core.log import log_to_stderr
from gpt2core.model import GPT, GPTConfig
from gpt2core.training import distributed
from gpt2core.training.batches import Batch, WindowSampler
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.optimizers import muon_and_adamw
from gpt2core.training.storage import LocalFolder
from gpt2core.training.task import Step
from tests.training.distributed_worker import TOKENS
from tests.training.function_task import train

MAX_STEPS, KILL_STEP = 6, 5


def run(checkpoints: CheckpointManager | None, kill_step: int, out: Path) -> None:
    """Train, and write this process's part of the weights."""
    torch.manual_seed(3)
    # Widths that two processes cannot halve evenly are among these.
    config = GPTConfig(vocab_size=61, n_positions=16, n_embd=18, n_layer=2, n_head=2, resid_pdrop=0.1)
    model = GPT(config)
    loss_of_batch = functools.partial(model.loss, reduction="sum")
    loss = distributed.parallel_loss(model, loss_of_batch, "full", torch.device("cpu"))
    optimizers = muon_and_adamw(model, muon_lr=0.02, lr=0.01, weight_decay=0.1, beta1=0.9, beta2=0.95)
    sampler = WindowSampler(TOKENS, 16, 1, "x")

    def batches(step: int) -> list[Batch]:
        return [sampler.windows_of([step * 4 + row for row in rows]) for rows in distributed.local_slices(4, 4)]

    def on_step(done: Step) -> None:
        if done.step == kill_step and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    train(
        model, optimizers, lambda step: 1.0, batches, lambda batch: loss(*batch.inputs, batch.targets),
        max_steps=MAX_STEPS, grad_clip=0.5, patience_evals=MAX_STEPS, checkpoints=checkpoints, on_step=on_step,
        is_evaluated=lambda step: step % 2 == 0, evaluate=lambda step: {"val_loss": abs(step - 2.0)}, loss_module=loss,
    )  # fmt: skip
    parts = {name: distributed.local_part(p.detach()).contiguous() for name, p in model.named_parameters()}
    safetensors.torch.save_file(parts, f"{out}-{distributed.rank()}.safetensors")


def main(folder: Path, kill_step: int) -> None:
    torch.set_num_threads(1)
    log_to_stderr()
    save = CheckpointManager.save

    def save_without_gathering(self: CheckpointManager, *arguments: Any) -> bool:
        full_tensor, DTensor.full_tensor = DTensor.full_tensor, None  # type: ignore[assignment, method-assign]
        try:
            return save(self, *arguments)
        finally:
            DTensor.full_tensor = full_tensor  # type: ignore[method-assign]

    CheckpointManager.save = save_without_gathering  # type: ignore[assignment, method-assign]
    with distributed.process_group():
        if kill_step:
            run(None, 0, folder / "never")
        checkpoints = CheckpointManager(LocalFolder(folder / "checkpoints"))
        run(checkpoints if distributed.rank() == 0 else None, kill_step, folder / "resumed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
