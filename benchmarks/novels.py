"""The 23 novels in half an hour: the profile `novels` compared with nanoGPT's model, optimizer, and schedule.

python -m benchmarks.novels [--minutes 30] [--side all]
python -m benchmarks.novels --only-time                           on an idle machine, then
python -m benchmarks.novels --side ours --steps 4600              on a busy one

nanoGPT is trained with the tokens of the profile's tokenizer, which is part of our recipe, and with GPT-2's tokens,
which its own scripts produce. All results are in bits per byte of the two held-out novels. Every token of these is
predicted, with at least half a context before it. The number of steps of a side is computed from the time of its start
(including compilation) and of a step, which are measured first. Reading, tokenizing, and the final evaluation do not
count. Without internet, set GPT2CORE_MIRROR.
"""

from __future__ import annotations

import functools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import machine, nanogpt
from gpt2core import files
from gpt2core.corpus.shards import Shard, open_shard
from gpt2core.corpus.tokenize import tokenize
from gpt2core.evaluation.metrics.language_model import nats
from gpt2core.params import Params, load_params
from gpt2core.runtime import should_compile
from gpt2core.sources.download_data import prepare_raw
from gpt2core.tokenizer import Tokenizer, load_tokenizer
from gpt2core.training.pretrain import Corpus, pretrain

PROFILE = Path(__file__).parent.parent / "profiles" / "novels.yaml"
TIMED_STEPS = 20
# nanoGPT's settings for a CPU, also with our context and tokens per step, or on GPT-2's tokens; compiled by default.
PEER = {"n_layer": 4, "n_head": 4, "n_embd": 128}
PEERS = {  # context, windows of a batch, tokenizer (None: the profile's)
    "nanogpt": (64, 12, None),
    "nanogpt-256": (256, 8, None),
    "nanogpt-gpt2": (64, 12, "gpt2"),
}
VOCAB_MULTIPLE = 64  # to which nanoGPT pads a vocabulary: 50,257 to 50,304

Train = Callable[[int], torch.nn.Module]  # of a number of steps
Data = tuple[Shard, Shard, Tokenizer]  # training, validation


def load(params: Params, folder: Path, kind: str | None = None) -> Data:
    """Return the tokens of both splits and their tokenizer (`kind` in place of the profile's), created if missing."""
    if kind:
        params = params.model_copy(update={"tokenizer": params.tokenizer.model_copy(update={"kind": kind})})
        folder = folder / kind
    tokens = folder / "tokens"
    if not tokens.is_dir():
        only_corpus = params.data.model_copy(update={"classification": "embedded", "instructions": "embedded"})
        prepare_raw(only_corpus, params.tokenizer.kind, params.seed, folder / "raw", folder / "own")
        tokenize(params.tokenizer, params.seed, folder / "raw", tokens)
    return open_shard(tokens / "train.bin"), open_shard(tokens / "val.bin"), load_tokenizer(tokens)


def ours(params: Params, data: Data, steps: int) -> torch.nn.Module:
    """Train by the profile's recipe for `steps` steps, without evaluations in between."""
    recipe = params.pretrain.model_copy(
        update={
            "max_steps": steps,
            "warmup_steps": min(params.pretrain.warmup_steps, steps),
            "eval_interval_steps": steps,
            "eval_batches": 1,
            "sample_tokens": 1,
            "compile": should_compile(params.pretrain.compile, params.pretrain.max_steps),  # also where few are timed
        }
    )
    train, val, tokenizer = data
    return pretrain(recipe, params.seed, [Corpus(train, val)], tokenizer).model


def theirs(context: int, batch_size: int, params: Params, data: Data, steps: int) -> torch.nn.Module:
    """Train by nanoGPT's recipe for small models: learning rate 1e-3, to a tenth of it by a cosine, beta2 0.99."""
    train, _, tokenizer = data
    torch.manual_seed(params.seed)
    rng = np.random.default_rng(params.seed)
    vocab_size = math.ceil(tokenizer.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    model = nanogpt.NanoGPT(nanogpt.Config(context, vocab_size, **PEER))
    recipe = nanogpt.Recipe(
        learning_rate=1e-3, min_lr=1e-4, warmup_steps=min(100, steps - 1), decay_steps=steps, beta2=0.99
    )
    batch = functools.partial(nanogpt.random_windows, train.tokens, batch_size, context, rng)
    nanogpt.train(torch.compile(model), recipe, batch, steps, _progress(steps))
    return model.eval()


def _progress(steps: int) -> Callable[[int, torch.Tensor], None]:
    def show(step: int, loss: torch.Tensor) -> None:
        if step % 100 == 0:
            print(f"nanogpt: step {step:,} of {steps:,}, loss {loss:.3f}", file=sys.stderr, flush=True)

    return show


def time_s(train: Train) -> tuple[float, float]:
    """Return the seconds before the first step of a training in a fresh process, and those of a step."""

    def seconds(steps: int) -> float:
        start_s = time.perf_counter()
        train(steps)
        return time.perf_counter() - start_s

    cold_s, few_s, many_s = seconds(2), seconds(2), seconds(2 + TIMED_STEPS)
    step_s = (many_s - few_s) / TIMED_STEPS
    return max(0.0, cold_s - 2 * step_s), step_s


def bits_per_byte(model: torch.nn.Module, val: Shard, eot_id: int, context: int) -> float:
    """Return the bits per byte of the whole split."""
    return nats(model, val.tokens, eot_id, context) / math.log(2) / val.n_bytes


SIDES = ("ours", *PEERS)


def run_side(
    name: str, params: Params, folder: Path, minutes: float, steps: int | None = None, only_time: bool = False
) -> dict[str, float]:
    """Time a side's steps (unless their number is given), train it, and evaluate it; return the figures."""
    recipe = params.pretrain
    context, batch_size, kind = PEERS.get(name, (recipe.context, recipe.batch_size * recipe.grad_accum_steps, None))
    data = load(params, folder, kind)
    side: Any = ours if name == "ours" else functools.partial(theirs, context, batch_size)
    train: Train = functools.partial(side, params, data)
    row: dict[str, float] = {"minutes": minutes, "steps": steps or 0}
    if not steps:
        row["start_s"], row["step_s"] = time_s(train)
        row["steps"] = int((60 * minutes - row["start_s"]) / row["step_s"])
    row["tokens"] = row["steps"] * context * batch_size
    if not only_time:
        start_s = time.perf_counter()
        model = train(int(row["steps"]))
        row["train_s"] = time.perf_counter() - start_s
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        row["bits_per_byte"] = bits_per_byte(model, data[1], data[2].eot_id, context)
    return row


@click.command()
@click.option("--minutes", default=30.0, show_default=True, help="Training time of a side.")
@click.option("--side", type=click.Choice(["all", *SIDES]), default="all", show_default=True)
@click.option("--only-time", is_flag=True, help="Time the steps, and train no further.")
@click.option("--steps", type=click.IntRange(min=1), help="Train this number of steps; do not time them.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps the tokens for the next time.")
@click.option("--out", type=click.Path(path_type=Path), help="Writes the figures as JSON.")
def main(minutes: float, side: str, only_time: bool, steps: int | None, folder: Path | None, out: Path | None) -> None:
    """Train each side for the same time, and print their bits per byte."""
    if steps and side == "all":
        raise click.UsageError("--steps is of one side: add --side ours, for example")
    params = load_params(PROFILE)
    print(machine.description(), flush=True)
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in SIDES if side == "all" else [side]:
            row = run_side(name, params, folder or Path(temporary), minutes, steps, only_time)
            figures[name] = row
            print(f"{name:<8} " + ", ".join(f"{key} {value:,.6g}" for key, value in row.items()), flush=True)
    if out:
        files.write_json(out, figures)


if __name__ == "__main__":
    main()
