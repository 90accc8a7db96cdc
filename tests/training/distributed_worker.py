"""What `test_distributed.py` runs under torchrun: some steps of a small GPT by each recipe and way to divide it; the
first process writes what came out."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.distributed.tensor import DTensor

from gpt2core.model import GPT, GPTConfig
from gpt2core.training import distributed
from gpt2core.training.batches import Batch, WindowSampler
from gpt2core.training.optimizers import adamw, muon_and_adamw
from gpt2core.training.resume import ResumableTraining
from gpt2core.training.task import Step
from tests.training.function_task import train

SHARDINGS = ("none", "full")
RECIPES = ("adamw", "muon", "untied", "checkpointing", "dropout")
MAX_STEPS, PAUSE_STEP = 6, 3
WINDOWS, BATCH_SIZE = 12, 4  # of a step and of a micro-batch: with two processes, of 3 each
TOKENS = (np.random.default_rng(0).integers(0, 6, 2000).cumsum() % 60).astype(np.uint16)


def run(sharding: str, recipe: str, out: Path) -> dict[str, Any]:
    """Train, write the weights to `out`, and return the figures."""
    torch.manual_seed(3)
    # Widths that two processes cannot halve evenly are among these.
    config = GPTConfig(
        vocab_size=61, n_positions=16, n_embd=18, n_layer=3, n_head=2, tie_word_embeddings=recipe != "untied",
        resid_pdrop=0.5 if recipe == "dropout" else 0.0,
    )  # fmt: skip
    model = GPT(config).double()  # in float32 AdamW makes much of the noise in gradients that should be zero
    model.transformer.activation_checkpointing = recipe == "checkpointing"
    loss_of_batch = functools.partial(model.loss, reduction="sum")
    loss = distributed.parallel_loss(model, loss_of_batch, sharding, torch.device("cpu"))
    if recipe == "muon":
        optimizers = muon_and_adamw(model, muon_lr=0.02, lr=0.01, weight_decay=0.1, beta1=0.9, beta2=0.95)
    else:
        optimizers = [adamw(model.parameters(), lr=0.01, weight_decay=0.1, beta2=0.95)]
    sampler = WindowSampler(TOKENS, 16, 1, "x")
    steps: list[Step] = []
    pauses = []

    def batches(step: int) -> list[Batch]:
        rows = distributed.local_slices(WINDOWS, BATCH_SIZE)
        return [sampler.windows_of([step * WINDOWS + row for row in some]) for some in rows]

    def on_pause(step: int) -> None:
        pauses.append(step)
        distributed.full_model(loss)

    # That one process wants a pause must stop them all.
    wants_pause = distributed.rank() == distributed.world_size() - 1
    ResumableTraining.is_due = lambda self, step: step == PAUSE_STEP and wants_pause  # type: ignore[method-assign]
    ResumableTraining.on_pause = lambda self, step, is_last: on_pause(step)  # type: ignore[method-assign]
    train(
        model, optimizers, lambda step: 1.0, batches, lambda batch: loss(*batch.inputs, batch.targets),
        max_steps=MAX_STEPS, grad_clip=0.5, loss_module=loss,
        on_step=steps.append,
    )  # fmt: skip
    held = sum(len((p.to_local() if isinstance(p, DTensor) else p).flatten()) for p in model.parameters())
    whole = distributed.full_model(loss)
    if distributed.rank() == 0:
        safetensors.torch.save_file({name: p.detach() for name, p in whole.named_parameters()}, out)
    figures = [[done.loss, done.grad_norm, done.n_targets] for done in steps]
    return {"steps": figures, "pauses": pauses, "held": held, "drawn": torch.rand(()).item()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    with distributed.process_group():
        for sharding in SHARDINGS:
            for recipe in RECIPES:
                name = f"{sharding}-{recipe}"
                found[name] = run(sharding, recipe, folder / f"{name}.safetensors")
        (folder / f"{distributed.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
