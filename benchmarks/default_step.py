"""A training step of the default profile, compared with nanoGPT's model and optimizer of the same sizes.

    python -m benchmarks.default_step [--rounds 5] [--steps 20]

Each side trains in a process of its own, by its own training loop; the sides take turns, `--steps` steps each.

- gpt2core portable: the loop of the stage `pretrain` with `numerics: portable`.
- nanogpt portable: the same environment variables and kernels, not compiled, which portable numerics exclude.
- nanogpt native: without these settings, all cores and instructions, compiled, which is nanoGPT's default.
"""

# With --side, numerics are prepared before PyTorch loads: imports that load it are in functions.
from __future__ import annotations

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpt2core.config.top_level import Numerics

ROOT = Path(__file__).parents[1]
PROFILE = ROOT / "profiles" / "embedded.yaml"
OURS, PEER, PEER_NATIVE = "gpt2core portable", "nanogpt portable", "nanogpt native"
SIDES = (OURS, PEER, PEER_NATIVE)
ENDLESS = 10_000_000  # steps of a training that ends with its process
STEPS = 20


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps per round and side (default: {STEPS})")
    parser.add_argument("--profile", type=Path, default=PROFILE, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.side:
        train(given.side, given.profile, given.folder)
        return
    from benchmarks import machine

    print(machine.description())
    for side, rates in measure(given.rounds, given.steps, given.profile).items():
        print(f"  {side:<18} {machine.spread(rates, ',.0f')} tokens/s")


def measure(rounds: int, steps: int = STEPS, profile: Path = PROFILE) -> dict[str, list[float]]:
    """Return each side's tokens per second, by round."""
    from benchmarks import machine, novels
    from gpt2core.params import load_params

    params = load_params(profile)
    tokens = steps * params.pretrain.context * params.pretrain.batch_size * params.pretrain.grad_accum_steps
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        novels.load(params, Path(folder))
        workers = {side: stack.enter_context(worker(side, profile, Path(folder))) for side in SIDES}
        turns = {side: functools.partial(ask, steps) for side, ask in workers.items()}
        times_s = machine.in_turn(turns, rounds, warm_up=1)
    return {side: [tokens / time_s for time_s in times] for side, times in times_s.items()}


@contextlib.contextmanager
def worker(side: str, profile: Path, folder: Path) -> Iterator[Callable[[int], float]]:
    """Start a process that trains one side; yield a function that returns the seconds of its next n steps."""
    options = ["--side", side, "--profile", profile, "--folder", folder]
    command = [sys.executable, "-m", "benchmarks.default_step", *options]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def ask(n_steps: int) -> float:
            print(n_steps, file=stdin, flush=True)
            if not (answer := stdout.readline()):
                raise RuntimeError(f"the process of {side} ended; see above")
            return float(answer)

        try:
            yield ask
        finally:
            process.kill()


class Turns:
    """Called after each step: times as many steps as standard input says, and waits there for the next number."""

    def __init__(self) -> None:
        self.last_step, self.start_s = 1, 0.0  # the first step is not timed

    def __call__(self, step: int) -> None:
        if step != self.last_step:
            return
        if self.start_s:
            print(time.perf_counter() - self.start_s, flush=True)
        line = sys.stdin.readline()
        if not line:  # the parent has ended
            os._exit(0)
        self.last_step, self.start_s = step + int(line), time.perf_counter()


def train(side: str, profile: Path, folder: Path) -> None:
    """Train a side until the process is killed."""
    from gpt2core import environment

    name, mode = side.split()
    numerics_mode: Numerics = "portable" if mode == "portable" else "native"
    environment.prepare(numerics_mode)

    import numpy as np
    import torch

    from benchmarks import nanogpt, novels
    from gpt2core import numerics
    from gpt2core.params import load_params
    from gpt2core.training.pretrain import Corpus, pretrain

    numerics.start(numerics_mode)
    params = load_params(profile)
    recipe, data, turns = params.pretrain, novels.load(params, folder), Turns()
    if name == "gpt2core":
        endless = recipe.model_copy(update={"max_steps": ENDLESS, "eval_interval_steps": ENDLESS})
        train_shard, val_shard, tokenizer = data
        corpora = [Corpus(train_shard, val_shard)]
        pretrain(endless, params.seed, corpora, tokenizer, on_metrics=lambda metrics, step: turns(step))
        return
    sizes = {key: value for key, value in recipe.sizes().items() if key != "n_positions"}
    model: torch.nn.Module = nanogpt.NanoGPT(nanogpt.Config(recipe.context, data[2].vocab_size, **sizes))
    if numerics_mode == "native":
        model = torch.compile(model)
    windows = recipe.batch_size * recipe.grad_accum_steps
    batch = functools.partial(
        nanogpt.random_windows, data[0].tokens, windows, recipe.context, np.random.default_rng(params.seed)
    )
    nanogpt.train(model, nanogpt.Recipe(), batch, ENDLESS, lambda step, loss: turns(step))


if __name__ == "__main__":
    main()
