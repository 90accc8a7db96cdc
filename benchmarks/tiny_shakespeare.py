"""Tiny Shakespeare by characters, with nanoGPT's settings for a CPU: the same loss in a quarter of the steps.

python -m benchmarks.tiny_shakespeare MIRROR [--seeds 3] [--side both]

Both sides have the same model (4 blocks, 4 heads, width 128, context 64), batch (12 windows, 768 tokens), and split
(the first nine tenths of the text are for training), and no dropout. nanoGPT trains 2,000 steps by its recipe, gpt2core
500 by `RECIPE`. The loss is that of the complete validation split, cut into windows of 64 that do not overlap; each
character except the first is predicted once. gpt2core has GPT-2's biases, and a 66th token for the end of a text.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks import machine, nanogpt
from gpt2core.config.pretrain import Pretrain
from gpt2core.corpus.shards import Shard
from gpt2core.evaluation.metrics.language_model import nats
from gpt2core.params import load_params
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_char
from gpt2core.training.pretrain import Corpus, pretrain

CONTEXT, BATCH_SIZE = 64, 12
NANOGPT = nanogpt.Recipe(learning_rate=1e-3, min_lr=1e-4, warmup_steps=100, decay_steps=2000, beta2=0.99)
PROFILE = Path(__file__).parent.parent / "profiles" / "tiny.yaml"
RECIPE = Pretrain.model_validate(
    load_params(PROFILE).pretrain.model_dump()  # for what has nothing to do with the result
    | dict(
        preset="tiny", n_layer=4, n_head=4, n_embd=128, n_positions=CONTEXT,
        dropout=0.0, qkv_bias=True, tie_weights=True, initializer_range=0.04,
        batch_size=BATCH_SIZE, grad_accum_steps=1, context=CONTEXT, max_steps=500, warmup_steps=20,
        optimizer="muon", lr=0.006, muon_lr=0.03, schedule="linear", min_lr_ratio=0.0,
        weight_decay=0.1, beta1=0.9, beta2=0.95, grad_clip=1.0,
        eval_interval_steps=500, eval_batches=1, sample_prompt="", sample_tokens=1,
        dtype="float32", compile=False,
    )
)  # fmt: skip

Trained = tuple[float, float]  # validation loss in nats a character, and the time of a step in seconds


def load(mirror: Path) -> tuple[Shard, Shard, Tokenizer]:
    """Both splits and one token a character, in the order in which nanoGPT numbers them too."""
    text = (mirror / "tiny-shakespeare" / "input.txt").read_text("utf-8")
    tokenizer = train_char([text])
    ids = np.array(tokenizer.encode(text), np.uint16)
    cut = int(len(ids) * 0.9)  # of ASCII, so that a character is a byte
    train, val = (Shard(part, tokenizer.vocab_size, 1, len(part)) for part in (ids[:cut], ids[cut:]))
    return train, val, tokenizer


def ours(train: Shard, val: Shard, tokenizer: Tokenizer, seed: int, recipe: Pretrain = RECIPE) -> Trained:
    """Train by `recipe` and evaluate."""
    start_s = time.perf_counter()
    model = pretrain(recipe, seed, [Corpus(train, val)], tokenizer).model
    return loss_of(model, val), (time.perf_counter() - start_s) / recipe.max_steps


def theirs(train: Shard, val: Shard, tokenizer: Tokenizer, seed: int, steps: int = NANOGPT.decay_steps) -> Trained:
    """Train by nanoGPT's recipe and evaluate."""
    torch.manual_seed(seed)
    n_characters = tokenizer.vocab_size - 1
    model = nanogpt.NanoGPT(nanogpt.Config(CONTEXT, n_characters, n_layer=4, n_head=4, n_embd=128))
    rng = np.random.default_rng(seed)
    start_s = time.perf_counter()
    nanogpt.train(model, NANOGPT, lambda: nanogpt.random_windows(train.tokens, BATCH_SIZE, CONTEXT, rng), steps)
    return loss_of(model.eval(), val), (time.perf_counter() - start_s) / steps


def loss_of(model: torch.nn.Module, val: Shard) -> float:
    """Return nats per character over the whole split."""
    total = nats(model, val.tokens[1:], int(val.tokens[0]), CONTEXT, stride=CONTEXT, batch_size=128)
    return total / (val.n_tokens - 1)


SIDES: dict[str, tuple[int, Callable[..., Trained]]] = {  # steps, training
    "nanogpt": (NANOGPT.decay_steps, theirs),
    "ours": (RECIPE.max_steps, ours),
}


def compare(mirror: Path, seeds: int, sides: Iterable[str] = SIDES) -> Iterator[tuple[str, list[Trained]]]:
    """Train sides from each seed; yield each side's name and results."""
    data = load(mirror)
    for name in sides:
        yield name, [SIDES[name][1](*data, seed) for seed in range(seeds)]


@click.command()
@click.argument("mirror", type=click.Path(exists=True, path_type=Path))
@click.option("--seeds", default=3, show_default=True)
@click.option("--side", type=click.Choice(["both", "ours", "nanogpt"]), default="both", show_default=True)
def main(mirror: Path, seeds: int, side: str) -> None:
    """Train both sides from each seed, and print the mean losses."""
    print(machine.description())
    for name, trained in compare(mirror, seeds, SIDES if side == "both" else [side]):
        steps = SIDES[name][0]
        losses = [loss for loss, _ in trained]
        step_ms = 1000 * statistics.median(step_s for _, step_s in trained)
        print(
            f"{name:<8} {steps:>5,} steps, {steps * BATCH_SIZE * CONTEXT:>9,} tokens: "
            f"{statistics.mean(losses):.4f} ({', '.join(f'{loss:.4f}' for loss in losses)}), {step_ms:.0f} ms per step"
        )


if __name__ == "__main__":
    main()
