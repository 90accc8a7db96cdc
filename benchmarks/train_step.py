"""A training step in tokens a second and in memory, beside transformers' GPT-2 and nanoGPT.

    python -m benchmarks.train_step [--size 124M --batch-size 4 --context 256 --dtype bfloat16 --no-compile]
    python -m benchmarks.train_step --batch-size 8 --context 1024 --memory

Each side trains in a process of its own, so that none lives on another's memory, and all take turns in every round,
with a matrix product between them, so that what else the machine does meets them alike. Everywhere: the same random
ids, no dropout, gradients clipped, AdamW fused, weights in float32 (bfloat16 is autocast). nanoGPT and gpt2core are
compiled with --compile; transformers runs as it comes. Nobody checkpoints activations.

MFU is the share of the matrix product's peak, measured in the same run, at (6 N + 12 L C T) operations a token
(Chowdhery et al. 2022, appendix B): N the weights with the tied head once and without the positions, L layers,
C channels, T context. That counts attention in full, also where a kernel leaves out the masked half.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import statistics
from argparse import BooleanOptionalAction
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import machine, nanogpt
from benchmarks.machine import GB, GPT2_VOCABULARY, best_time_s, spread, timed
from gpt2core import runtime
from gpt2core.config.presets import PRESETS
from gpt2core.model import GPT, GPTConfig
from gpt2core.training.optimizers import adamw

SIDES = ("transformers", "nanogpt", "gpt2core")
WARM_UP_STEPS = 3  # the first compiles and makes the optimizer's state
GRAD_CLIP = 1.0


@dataclass(frozen=True)
class Work:
    """What all sides do."""

    size: str
    batch_size: int
    context: int
    dtype: str
    compile: bool

    @property
    def config(self) -> GPTConfig:
        sizes = PRESETS[self.size]
        return GPTConfig(
            vocab_size=GPT2_VOCABULARY, **{**sizes, "n_positions": max(self.context, sizes["n_positions"])}
        )

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch_size * self.context


def flops_per_token(c: GPTConfig, context: int) -> int:
    """Return the operations per token of forward and backward pass; see the module's first lines."""
    block = 12 * c.n_embd**2 + 13 * c.n_embd  # four matrices with their biases, two norms
    N = c.n_layer * block + c.vocab_size * c.n_embd + 2 * c.n_embd
    return 6 * N + 12 * c.n_layer * c.n_embd * context


Step = Callable[[], Tensor]  # one update; the loss


def main(arguments: Sequence[str] | None = None) -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("--size", choices=list(PRESETS), default="124M")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action=BooleanOptionalAction, default=True)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5, help="steps that count")
    parser.add_argument("--memory", action="store_true", help="peak memory, one side after the other; no times")
    given = parser.parse_args(arguments)
    work = Work(given.size, given.batch_size, given.context, given.dtype, given.compile)
    sides = [side for side in given.sides if side != "transformers" or importlib.util.find_spec("transformers")]
    device = runtime.device()
    print(machine.description())
    print(
        f"{work.size}, B={work.batch_size} T={work.context}, {work.dtype}, {'' if work.compile else 'not '}compiled; "
        f"{flops_per_token(work.config, work.context) / GB:.2f} GFLOP per token"
    )
    if given.memory:
        report_memory(work, sides, device)
    else:
        report_speed(work, sides, device, given.rounds)


def report_speed(work: Work, sides: Sequence[str], device: torch.device, rounds: int) -> None:
    """Print each side's tokens per second, all sides in turn, with a matrix product before each round."""
    with contextlib.ExitStack() as stack:
        workers = {side: stack.enter_context(worker(work, side)) for side in sides}
        for ask in workers.values():
            for _ in range(WARM_UP_STEPS):
                ask(step_s)
        turns: dict[str, Callable[[], float]] = {"product": lambda: product_flops(work.dtype, device)}
        turns |= {side: lambda ask=ask: ask(step_s) for side, ask in workers.items()}
        times_s = machine.in_turn(turns, rounds)
    products = times_s.pop("product")
    peak, flops = max(products), flops_per_token(work.config, work.context)
    print(f"matrix product: {peak / GB:.0f} GFLOP/s at best ({min(products) / GB:.0f} in the slowest round)")
    best_s = min((statistics.median(t) for side, t in times_s.items() if side != "gpt2core"), default=float("nan"))
    print(f"tokens/s, median of {rounds} steps (least to most)")
    for side, times in times_s.items():
        median_s = statistics.median(times)
        print(
            f"  {side:<13} {spread([work.tokens / time for time in times])}  "
            f"{best_s / median_s:5.2f} × the better peer  MFU {work.tokens / median_s * flops / peak:4.0%}"
        )


def report_memory(work: Work, sides: Sequence[str], device: torch.device) -> None:
    """Print each side's peak memory, one side after the other."""
    peaks = {}
    for side in sides:
        with worker(work, side) as ask:
            peaks[side] = ask(peak_bytes)
    print("peak memory" + (", as torch allocated it" if device.type == "cuda" else ", anonymous"))
    for side, peak in peaks.items():
        share = f"  {peak / peaks['transformers']:5.2f} × transformers" if "transformers" in peaks else ""
        print(f"  {side:<13} {peak / GB:7.2f} GB{share}")


def product_flops(dtype: str, device: torch.device) -> float:
    """Operations a second of the machine's best matrix product: of 8,192³ on CUDA, else of a few that suit caches."""
    best = 0.0
    for n in (8192,) if device.type == "cuda" else (1024, 2048, 3072):
        a, b, out = (torch.randn(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(3))

        def multiply(a: Tensor = a, b: Tensor = b, out: Tensor = out) -> None:
            torch.mm(a, b, out=out)
            synchronize(device)

        best = max(best, 2 * n**3 / best_time_s(multiply, 3))
    return best


Ask = Callable[[Callable[[], float]], float]
_step: Step  # in a worker


@contextlib.contextmanager
def worker(work: Work, side: str) -> Iterator[Ask]:
    """Start a process that trains one side, and yield a function that calls another one in it.

    Raises:
        RuntimeError: the process ended; its output has the reason.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would share what the parent's threads hold
    with ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(work, side)) as pool:

        def ask(function: Callable[[], float]) -> float:
            try:
                return pool.submit(function).result()
            except BrokenProcessPool:
                raise RuntimeError(f"the process of {side} ended; see above") from None

        yield ask


def _start(work: Work, side: str) -> None:
    global _step
    _step = new_step(work, side, runtime.device())


def step_s() -> float:
    """Take a step in a worker; return its seconds."""

    def step() -> None:
        _step()
        synchronize(runtime.device())

    synchronize(runtime.device())
    return timed(step)[0].wall


def peak_bytes() -> int:
    """Take two steps in a worker, the second with the optimizer's state; return the peak of memory in bytes."""
    with machine.peak_of(lambda: machine.anonymous_bytes(os.getpid())) as peak:
        _step()
        _step()
        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak()


def new_step(work: Work, side: str, device: torch.device) -> Step:
    """Return one training step of a side's model."""
    torch.manual_seed(0)
    ids = torch.randint(work.config.vocab_size, (work.batch_size, work.context + 1)).to(device)
    model, loss = {"transformers": transformers_side, "nanogpt": nanogpt_side, "gpt2core": our_side}[side](work)
    model.to(device).train()
    optimizer = adamw(model.parameters(), lr=3e-4, weight_decay=0.1, beta2=0.95)
    dtype = getattr(torch, work.dtype)

    def step() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            value = loss(ids[:, :-1], ids[:, 1:])
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


Loss = Callable[[Tensor, Tensor], Tensor]  # ids and the next ids, both [B, T] -> mean nats


def transformers_side(work: Work) -> tuple[nn.Module, Loss]:
    import transformers

    switches = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    sizes = {key: getattr(work.config, key) for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **switches))
    return model, lambda ids, targets: model(input_ids=ids, labels=ids).loss


def nanogpt_side(work: Work) -> tuple[nn.Module, Loss]:
    """With its recipes' switches: no biases, vocabulary 50,304."""
    c = work.config
    sizes = dict(block_size=c.n_positions, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd)
    model = nanogpt.NanoGPT(nanogpt.Config(**sizes))
    return model, torch.compile(model) if work.compile else model


def our_side(work: Work) -> tuple[nn.Module, Loss]:
    model = GPT(work.config)
    if work.compile:
        model.transformer.compile()
    return model, lambda ids, targets: model.loss(ids, targets, reduction="sum") / targets.numel()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
