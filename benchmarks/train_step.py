"""Speed and memory of a training step, compared with transformers' GPT-2 and nanoGPT.

    python -m benchmarks.train_step [--size 124M --batch-size 4 --context 256 --dtype bfloat16 --no-compile]
    python -m benchmarks.train_step --batch-size 8 --context 1024 --memory
    python -m benchmarks.train_step --batch-size auto --context 1024 --dtype bfloat16          (on a GPU)

Each side trains in a process of its own, so that none uses another's memory. All take turns in every round, with a
matrix product between them, so that other work on the machine affects them alike. All sides have the same random ids,
no dropout, clipped gradients, fused AdamW, and weights in float32 (bfloat16 is autocast). nanoGPT and gpt2core are
compiled with --compile; transformers runs as it comes. Nobody checkpoints activations. On a GPU, all sides stay in its
memory: each may use an equal part, and `--batch-size auto` is the largest power of two that fits into it on all sides.

MFU is the share of the matrix product's peak, measured in the same run, at (6 N + 12 L C T) operations a token
(Chowdhery et al. 2022, appendix B): N the weights with the tied head once and without the positions, L layers,
C channels, T context. That counts attention in full, also where a kernel leaves out the masked half.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import statistics
from argparse import BooleanOptionalAction
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import machine, nanogpt
from benchmarks.machine import GB, GPT2_VOCABULARY, best_time_s, spread, timed
from gpt2core import runtime
from gpt2core.config.presets import PRESETS
from gpt2core.model import GPT, GPTConfig
from gpt2core.training.compiling import compiled_blocks
from gpt2core.training.optimizers import adamw

SIDES = ("transformers", "nanogpt", "gpt2core")
WARM_UP_STEPS = 3  # the first compiles and makes the optimizer's state
PEAK_STEPS = 2  # of these, the second has the optimizer's state
GRAD_CLIP = 1.0
MAX_BATCH_SIZE = 1024
USED_MEMORY = 0.9  # of a GPU, by all sides together


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
        """Number of tokens per step."""
        return self.batch_size * self.context

    @property
    def flops(self) -> int:
        """Operations per step."""
        return self.tokens * flops_per_token(self.config, self.context)

    def __str__(self) -> str:
        compiled = "compiled" if self.compile else "not compiled"
        return f"{self.size}, B={self.batch_size} T={self.context}, {self.dtype}, {compiled}"


def flops_per_token(c: GPTConfig, context: int) -> int:
    """Return the operations per token of forward and backward pass; see the module's first lines."""
    block = 12 * c.n_embd**2 + 13 * c.n_embd  # four matrices with their biases, two norms
    N = c.n_layer * block + c.vocab_size * c.n_embd + 2 * c.n_embd
    return 6 * N + 12 * c.n_layer * c.n_embd * context


Step = Callable[[], Tensor]  # one update; the loss


def batch_size(text: str) -> int | None:
    """Parse a batch size; None for auto."""
    return None if text == "auto" else int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("--size", choices=list(PRESETS), default="124M")
    parser.add_argument("--batch-size", type=batch_size, default=4, help="windows per step, or auto (on a GPU)")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action=BooleanOptionalAction, default=True)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5, help="steps that count")
    parser.add_argument("--memory", action="store_true", help="peak memory, one side after the other; no times")
    given = parser.parse_args(arguments)
    sides = [side for side in given.sides if side != "transformers" or importlib.util.find_spec("transformers")]
    device = runtime.device()
    if given.batch_size is None and device.type != "cuda":
        parser.error("--batch-size auto needs a GPU")
    work = Work(given.size, given.batch_size or 1, given.context, given.dtype, given.compile)
    if given.batch_size is None:
        work = replace(work, batch_size=batch_size_for_memory(work, sides))
    print(machine.description())
    print(f"{work}; {flops_per_token(work.config, work.context) / GB:.2f} GFLOP per token")
    if given.memory:
        print_memory(measure_memory(work, sides), device)
    else:
        print_speed(work, measure_speed(work, sides, device, given.rounds), given.rounds)


class Speed(NamedTuple):
    """What `measure_speed` returns."""

    products: list[float]  # the matrix product's operations per second, of each round
    times_s: dict[str, list[float]]  # of a step, by side and round
    peak_bytes: dict[str, float]  # memory, by side


def measure_speed(work: Work, sides: Sequence[str], device: torch.device, rounds: int) -> Speed:
    """Time the steps of all sides in turn, with a matrix product before each round."""
    with contextlib.ExitStack() as stack:
        workers = {side: stack.enter_context(worker(work, side, 1 / len(sides))) for side in sides}
        peaks = {}
        for side, ask in workers.items():
            peaks[side] = ask(peak_bytes)
            for _ in range(WARM_UP_STEPS - PEAK_STEPS):
                ask(step_s)
        turns: dict[str, Callable[[], float]] = {"product": lambda: product_flops(work.dtype, device)}
        turns |= {side: lambda ask=ask: ask(step_s) for side, ask in workers.items()}
        times_s = machine.in_turn(turns, rounds)
    return Speed(times_s.pop("product"), times_s, peaks)


def measure_memory(work: Work, sides: Sequence[str]) -> dict[str, float]:
    """Return each side's peak memory in bytes, one side after the other."""
    peaks = {}
    for side in sides:
        with worker(work, side) as ask:
            peaks[side] = ask(peak_bytes)
    return peaks


def batch_size_for_memory(work: Work, sides: Sequence[str]) -> int:
    """Return the largest batch size that all sides have the memory for while all are on the GPU."""
    sizes = []
    for side in sides:
        with worker(replace(work, batch_size=1), side, 1 / len(sides)) as ask:
            sizes.append(largest_batch(lambda size, ask=ask: bool(ask(functools.partial(fits, size)))))
    return min(sizes)


def largest_batch(fits: Callable[[int], bool], at_most: int = MAX_BATCH_SIZE) -> int:
    """Return the largest power of two that fits.

    Raises:
        RuntimeError: not even one window fits.
    """
    if not fits(1):
        raise RuntimeError("a batch of one window does not fit into the memory")
    size = 1
    while 2 * size <= at_most and fits(2 * size):
        size *= 2
    return size


def print_speed(work: Work, speed: Speed, rounds: int) -> None:
    """Print each side's tokens per second and MFU."""
    products, times_s, _ = speed
    peak = max(products)
    print(f"matrix product: {peak / GB:.0f} GFLOP/s at best ({min(products) / GB:.0f} in the slowest round)")
    best_s = min((statistics.median(t) for side, t in times_s.items() if side != "gpt2core"), default=float("nan"))
    print(f"tokens/s, median of {rounds} steps (least to most)")
    for side, times in times_s.items():
        median_s = statistics.median(times)
        print(
            f"  {side:<13} {spread([work.tokens / time for time in times])}  "
            f"{best_s / median_s:5.2f} × the better peer  MFU {work.flops / median_s / peak:4.0%}"
        )


def print_memory(peaks: dict[str, float], device: torch.device) -> None:
    print("peak memory" + (", as torch allocated it" if device.type == "cuda" else ", anonymous"))
    for side, peak in peaks.items():
        share = f"  {peak / peaks['transformers']:5.2f} × transformers" if "transformers" in peaks else ""
        print(f"  {side:<13} {peak / GB:7.2f} GB{share}")


def product_flops(dtype: str, device: torch.device) -> float:
    """Return the operations per second of the best matrix product: 8,192³ on CUDA, else of a few that suit caches."""
    best = 0.0
    for n in (8192,) if device.type == "cuda" else (1024, 2048, 3072):
        a, b, out = (torch.randn(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(3))

        def multiply(a: Tensor = a, b: Tensor = b, out: Tensor = out) -> None:
            torch.mm(a, b, out=out)
            synchronize(device)

        best = max(best, 2 * n**3 / best_time_s(multiply, 3))
    return best


Ask = Callable[[Callable[[], float]], float]
_compiled = contextlib.ExitStack()  # what is compiled until the process ends
_step: Step  # in a worker
_with_batch_size: Callable[[int], Step]  # in a worker: the same model and optimizer with other batches


@contextlib.contextmanager
def worker(work: Work, side: str, memory: float = 1.0) -> Iterator[Ask]:
    """Start a process that trains one side, and yield a function that calls another one in it.

    Args:
        work: what it does.
        side: one of `SIDES`.
        memory: the part of `USED_MEMORY` of a GPU that it may use.

    Raises:
        RuntimeError: the process ended; its output has the reason.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would share what the parent's threads hold
    with ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(work, side, memory)) as pool:

        def ask(function: Callable[[], float]) -> float:
            try:
                return pool.submit(function).result()
            except BrokenProcessPool:
                raise RuntimeError(f"the process of {side} ended; see above") from None

        yield ask


def _start(work: Work, side: str, memory: float) -> None:
    global _step, _with_batch_size
    device = runtime.device()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(USED_MEMORY * memory)
        torch.set_float32_matmul_precision("high")  # TF32, as in nanoGPT's training
    _with_batch_size = steps_of(work, side, device)
    _step = _with_batch_size(work.batch_size)


def step_s() -> float:
    """Take a step in a worker; return its seconds."""

    def step() -> None:
        _step()
        synchronize(runtime.device())

    synchronize(runtime.device())
    return timed(step)[0].wall


def peak_bytes() -> int:
    """Take the first steps in a worker; return the peak of memory in bytes."""
    with machine.peak_of(lambda: machine.anonymous_bytes(os.getpid())) as peak:
        for _ in range(PEAK_STEPS):
            _step()
        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak()


def fits(size: int) -> bool:
    """Return whether a worker has the memory for steps of this batch size."""
    try:
        step = _with_batch_size(size)
        for _ in range(PEAK_STEPS):
            step()
        synchronize(runtime.device())
    except torch.OutOfMemoryError:
        return False
    return True


def new_step(work: Work, side: str, device: torch.device) -> Step:
    """Return one training step of a side's model."""
    return steps_of(work, side, device)(work.batch_size)


def steps_of(work: Work, side: str, device: torch.device) -> Callable[[int], Step]:
    """Return a function that returns a training step of a side's model with a given batch size."""
    torch.manual_seed(0)
    model, loss = {"transformers": transformers_side, "nanogpt": nanogpt_side, "gpt2core": our_side}[side](work)
    model.to(device).train()
    optimizer = adamw(model.parameters(), lr=3e-4, weight_decay=0.1, beta2=0.95)
    dtype = getattr(torch, work.dtype)

    def update(ids: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            value = loss(ids[:, :-1], ids[:, 1:])
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    def with_batch_size(size: int) -> Step:
        ids = torch.randint(work.config.vocab_size, (size, work.context + 1)).to(device)  # [B, T + 1]
        return functools.partial(update, ids)

    return with_batch_size


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
    """As the stage trains: the blocks and the loss compiled, and freed memory used again."""
    model = GPT(work.config)
    runtime.reuse_memory()
    if work.compile:
        _compiled.enter_context(compiled_blocks(model))
    return model, lambda ids, targets: model.loss(ids, targets, reduction="sum") / targets.numel()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
