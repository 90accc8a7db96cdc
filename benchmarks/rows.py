"""The rows of the table of `benchmarks.all`, and how each is measured by the other modules of this package.

A group measures the sides of some rows together, in turn. Each row compares two of its sides.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import decoders, default_step, generate, machine, novels, pipeline, tiny_shakespeare, train_step
from benchmarks.machine import GB
from benchmarks.train_step import Work
from gpt2core import runtime
from gpt2core.params import load_params

Rounds = dict[str, list[float]]  # figures by side and round
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROUNDS = 5
SEEDS = 3
PRODUCT = "matrix product"
TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Row:
    """A figure of ours compared with that of a peer, or with a limit."""

    work: str
    ours: str  # a side
    peer: str  # a side
    unit: str
    at_least: float | None = None  # goal for ours / peer
    at_most: float | None = None  # the same

    @property
    def key(self) -> str:
        """What identifies the row in records."""
        return f"{self.work}: {self.ours} / {self.peer}"

    def ratio(self, rounds: Rounds) -> float:
        """Return the median of ours divided by the peer's."""
        return statistics.median(rounds[self.ours]) / statistics.median(rounds[self.peer])

    def is_met(self, ratio: float) -> bool:
        """Return whether a ratio meets the goal; True without one."""
        return (self.at_least is None or ratio >= self.at_least) and (self.at_most is None or ratio <= self.at_most)


@dataclass(frozen=True)
class Group:
    """Rows that are measured together."""

    name: str
    rows: Sequence[Row]
    measure: Callable[[], Rounds]
    lacks: str = ""  # why this machine cannot run it


def cpu_groups(rounds: int = ROUNDS) -> list[Group]:
    """Return the groups that take less than an hour on two cores."""
    step = Work("124M", 4, 256, "bfloat16", compile=True)
    long_step = replace(step, batch_size=8, context=1024)
    # The short groups come first; `repro` takes the longest.
    return [
        first_token_group(rounds),
        default_step_group(rounds),
        generate_group("124M", 1, 32, 128, rounds),
        generate_group("124M", 8, 64, 128, rounds),
        train_group("train-float32", replace(step, dtype="float32"), rounds, at_least=1.1, mfu=0.8),
        train_group("train-bfloat16", step, rounds, at_least=1.2, mfu=0.8),
        train_group("train-long", long_step, rounds, at_least=1.2, transformers=1.2, memory=0.5),
        repro_group(min(rounds, pipeline.REPRO_ROUNDS), rounds),
    ]


def long_groups() -> list[Group]:
    """Return the trainings to a loss, which take more than an hour."""
    lacks = "" if os.environ.get("GPT2CORE_MIRROR") else "GPT2CORE_MIRROR is not set"
    return [tiny_shakespeare_group(SEEDS, lacks), novels_group(30.0, lacks)]


def gpu_groups(rounds: int = ROUNDS) -> list[Group]:
    """Return the groups of a GPU."""
    works = [Work(size, 0, 1024, "bfloat16", compile=True) for size in ("124M", "355M")]
    goals: dict[str, Any] = dict(at_least=1.2, mfu=0.5, lacks=no_gpu())
    return [
        *(train_group(f"train-{work.size}", work, 2 * rounds, **goals) for work in works),
        *(generate_group("124M", B, 64, 128, rounds, CUDA, no_gpu()) for B in (1, 64)),
    ]


def no_gpu() -> str:
    """Return why CUDA cannot be used, or an empty string."""
    return "" if torch.cuda.is_available() else "this machine has no CUDA GPU"


# -- Training --------------------------------------------------------------------------------------------------------


def train_group(
    name: str, work: Work, rounds: int, *, at_least: float, mfu: float | None = None,
    transformers: float | None = None, memory: float | None = None, lacks: str = "",
) -> Group:  # fmt: skip
    """Return the group of a training step; a batch size of 0 is chosen by the GPU's memory.

    Args:
        name: of the group.
        work: of a step.
        rounds: steps of each side that count.
        at_least: goal for the speed compared with nanoGPT.
        mfu: goal for the share of the matrix product's speed.
        transformers: goal for the speed compared with transformers.
        memory: goal for the memory compared with transformers, at most.
        lacks: why the group cannot run.
    """
    title = f"training step, {work}".replace("B=0 ", "")
    rows = [
        Row(title, "gpt2core", "nanogpt", "tokens/s", at_least),
        Row(title, "gpt2core", TRANSFORMERS, "tokens/s", transformers),
        Row(f"{title}: MFU", "gpt2core, operations", PRODUCT, "TFLOP/s", mfu),
        Row(f"{title}: memory", "gpt2core, memory", f"{TRANSFORMERS}, memory", "GB", at_most=memory),
    ]
    if work.batch_size and work.dtype == "bfloat16" and not runtime._cpu_has_bfloat16():
        lacks = "this CPU has no bfloat16 arithmetic (AVX-512 bf16 or AMX)"
    return Group(name, rows, functools.partial(measure_training, work, rounds), lacks)


def measure_training(work: Work, rounds: int) -> Rounds:
    """Return tokens per second, operations per second, and memory of a training step."""
    sides = [side for side in train_step.SIDES if not decoders.lacks(side)]
    device = runtime.device()
    if not work.batch_size:
        work = replace(work, batch_size=train_step.batch_size_for_memory(replace(work, batch_size=1), sides))
    speed = train_step.measure_speed(work, sides, device, rounds)
    result: Rounds = {"batch size": [work.batch_size], "matrix product, all rounds": [p / 1e12 for p in speed.products]}
    result[PRODUCT] = [max(speed.products) / 1e12]
    for side, times_s in speed.times_s.items():
        result[side] = [work.tokens / time_s for time_s in times_s]
        result[f"{side}, operations"] = [work.flops / time_s / 1e12 for time_s in times_s]
        result[f"{side}, memory"] = [speed.peak_bytes[side] / GB]
    return result


def default_step_group(rounds: int, **options: Any) -> Group:
    """Return the group of a step of the default profile; `options` are those of `default_step.measure`."""
    work = "training step, default profile"
    rows = [
        Row(work, default_step.OURS, default_step.PEER, "tokens/s", 1.3),
        Row(work, default_step.OURS, default_step.PEER_NATIVE, "tokens/s"),
    ]
    return Group("train-default", rows, lambda: default_step.measure(rounds, **options))


# -- Generation ------------------------------------------------------------------------------------------------------


def bandwidth(dtype: str) -> str:
    """Return the name of the side of the memory's limit."""
    return f"memory bandwidth, {dtype}"


def generate_group(
    size: str, B: int, P: int, new: int, rounds: int, device: torch.device = CPU, lacks: str = ""
) -> Group:
    """Return the group of greedy decoding of B prompts of P tokens, without lookup."""
    work = f"greedy, {size}, {'one prompt' if B == 1 else f'{B} prompts'} of {P}, {new} new"
    ours = {dtype: f"gpt2core {dtype}" for dtype in ("float32", "bfloat16", "int8")}
    if device.type == "cuda":
        rows = [Row(work, ours["bfloat16"], peer, "tokens/s") for peer in decoders.peers(device)]
    elif B == 1:
        rows = [
            Row(work, ours["float32"], "CTranslate2 float32", "tokens/s", 1.15),
            Row(work, ours["float32"], bandwidth("float32"), "tokens/s", 0.85),
            Row(work, ours["float32"], f"{TRANSFORMERS} float32", "tokens/s"),
            Row(work, ours["bfloat16"], bandwidth("bfloat16"), "tokens/s"),
            Row(work, ours["int8"], "CTranslate2 int8", "tokens/s", 2.0),
            Row(work, ours["int8"], "llama.cpp Q8_0", "tokens/s", 1.2),
            Row(work, ours["int8"], bandwidth("int8"), "tokens/s"),
        ]
    else:
        rows = [
            Row(work, ours["float32"], "CTranslate2 float32", "tokens/s", 1.8),
            Row(work, ours["float32"], f"{TRANSFORMERS} float32", "tokens/s"),
            Row(work, ours["int8"], "CTranslate2 int8", "tokens/s", 2.0),
        ]
    dtypes = [dtype for dtype in ours if any(row.ours == ours[dtype] for row in rows)]
    measure = functools.partial(measure_generation, size, (B, P, new), rounds, device, dtypes)
    return Group(f"generate-{B}", rows, measure, lacks)


def measure_generation(
    size: str, shape: tuple[int, int, int], rounds: int, device: torch.device, dtypes: Sequence[str]
) -> Rounds:
    """Return new tokens per second of each side, and on a CPU those that the memory's bandwidth allows for one prompt.

    Args:
        size: of the model, with random weights.
        shape: prompts, tokens of each, and new tokens.
        rounds: of each side.
        device: of all sides.
        dtypes: of our sides.
    """
    B, P, new = shape
    model = machine.random_model(size)
    ids = generate.prompts(None, model.config.vocab_size, rounds, B, P)  # [rounds, B, P]
    limits: Rounds = {}
    if device.type == "cpu":
        bytes_per_s = machine.memory_bandwidth_gb_s() * GB
        weights = generate.n_weights(model)
        limits = {bandwidth(dtype): [bytes_per_s / weights / generate.WEIGHT_BYTES[dtype]] for dtype in dtypes}
        load = functools.partial(generate.load_model, size)
        with generate.sides_apart(load, generate.cpu_sides(B, dtypes)) as sides:
            times_s, _, _ = generate.in_turn(sides, ids, new)
    else:
        model.to(device)
        here = {**generate.peer_sides(model, device, B), **generate.our_sides(model, dtypes)}
        times_s, _, _ = generate.in_turn(here, ids, new)
    return limits | {name: [B * new / time_s for time_s in times] for name, times in times_s.items()}


# -- The pipeline ----------------------------------------------------------------------------------------------------


def repro_group(rounds: int, no_op_rounds: int, profile: str = "embedded") -> Group:
    """Return the group of `dvc repro`."""
    work, share = "dvc repro --force", "MLflow's time"
    rows = [
        Row(f"{work}: MLflow's share", share, pipeline.TRACKED, "s", at_most=0.10),
        Row(f"{work}: MLflow's time", share, "goal", "s", at_most=1.0),
        Row("dvc repro, nothing to do", pipeline.NO_OP, "1 s + import of dvc", "s", at_most=1.0),
    ]

    def measure() -> Rounds:
        times_s = pipeline.repro(rounds, no_op_rounds, profile)
        untracked, tracked = times_s[pipeline.UNTRACKED], times_s[pipeline.TRACKED]
        return times_s | {
            share: [a - b for a, b in zip(tracked, untracked, strict=True)],
            "goal": [15.0],
            "1 s + import of dvc": [1.0 + time_s for time_s in times_s[pipeline.IMPORT]],
        }

    return Group("repro", rows, measure)


def first_token_group(rounds: int) -> Group:
    """Return the group of the first token of a small model."""
    row = Row("gpt2core generate, small model, whole process", pipeline.FIRST_TOKEN, "goal", "s", at_most=1.0)
    return Group("first-token", [row], lambda: {**pipeline.first_token(rounds), "goal": [2.0]})


# -- Training to a loss ----------------------------------------------------------------------------------------------


def tiny_shakespeare_group(seeds: int, lacks: str) -> Group:
    """Return the group of Tiny Shakespeare: as good as nanoGPT with a fifth of its tokens."""
    work = "Tiny Shakespeare"
    rows = [
        Row(f"{work}: validation loss", "ours", "nanogpt", "nats", at_most=1.0),
        Row(f"{work}: tokens", "ours, tokens", "nanogpt, tokens", "tokens", at_most=0.2),
    ]

    def measure() -> Rounds:
        result: Rounds = {}
        for name, trained in tiny_shakespeare.compare(Path(os.environ["GPT2CORE_MIRROR"]), seeds):
            steps = tiny_shakespeare.SIDES[name][0]
            result[name] = [loss for loss, _ in trained]
            result[f"{name}, tokens"] = [steps * tiny_shakespeare.BATCH_SIZE * tiny_shakespeare.CONTEXT]
        return result

    return Group("tiny-shakespeare", rows, measure, lacks)


def novels_group(minutes: float, lacks: str) -> Group:
    """Return the group of the 23 novels, both sides with our tokenizer."""
    row = Row(f"23 novels, {minutes:g} minutes", "ours", "nanogpt", "bits per byte", at_most=0.95)

    def measure() -> Rounds:
        params = load_params(novels.PROFILE)
        with tempfile.TemporaryDirectory() as folder:
            sides = {name: novels.run_side(name, params, Path(folder), minutes) for name in ("ours", "nanogpt")}
        return {name: [figures["bits_per_byte"]] for name, figures in sides.items()}

    return Group("novels", [row], measure, lacks)
