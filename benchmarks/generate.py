"""Speed of greedy decoding, compared with transformers, CTranslate2, and llama.cpp with the same weights.

    python -m benchmarks.generate [--size 124M | --model DIR] [--rounds 5] [--dtypes float32 int8 ...]
    python -m benchmarks.generate --model models/pretrained --prompts data/tokens/val.bin --rounds 20

All take turns in every round, so that other work on the machine affects them alike. On a CPU, each is a process of its
own: the threads of another library in the process, even idle ones, make OpenMP's barriers slower. Peers that are not
installed are left out. A pass reads all weights of the linear layers once: their bytes times the passes per second,
divided by the memory bandwidth measured in the same run, is the share of what the memory allows.

The rows "lookup" guess tokens from the text so far (`gpt2core.inference.lookup`) and say how many a pass gave. How many
depends on the text alone. Greedy decoding with random weights soon writes the same few tokens again and again, which is
the easiest case there is; with --model and --prompts they are what a trained model makes of texts that it has not read.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gpt2core
from benchmarks import decoders, machine
from benchmarks.decoders import Decode
from benchmarks.machine import GB, spread, timed
from gpt2core.config.presets import PRESETS
from gpt2core.corpus.shards import open_shard
from gpt2core.inference import generate
from gpt2core.model import GPT
from gpt2core.model.inference import InferenceGPT, pack
from gpt2core.runtime import DECODING_DTYPES

WORKS = {"one prompt of 32, 128 new": (1, 32, 128), "eight prompts of 64, 128 new": (8, 64, 128)}
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "Q8_0": 34 / 32}
LOOKUP = ", lookup"  # how the names of these rows end


def main() -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("--size", choices=list(PRESETS), default="124M", help="of a model with random weights")
    parser.add_argument("--model", type=Path, help="a model directory in its place")
    parser.add_argument("--prompts", type=Path, help="a token shard to take them from, others in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=DECODING_DTYPES, default=list(DECODING_DTYPES))
    arguments = parser.parse_args()
    load = functools.partial(load_model, arguments.model or arguments.size)
    model = load()
    print(machine.description())
    bandwidth_gb_s, weights = machine.memory_bandwidth_gb_s(), n_weights(model)
    print(f"memory: {bandwidth_gb_s:.1f} GB/s read; {weights / 1e6:.0f} million weights in linear layers")
    for title, (B, P, new) in WORKS.items():
        ids = prompts(arguments.prompts, model.config.vocab_size, arguments.rounds, B, P)  # [rounds, B, P]
        with sides_apart(load, cpu_sides(B, arguments.dtypes, (False, True) if B == 1 else (False,))) as sides:
            times_s, same, passes = in_turn(sides, ids, new)
        print(f"\n{title}: tokens/s, median of {arguments.rounds} rounds (least to most)")
        theirs_s = statistics.median(times_s.get("transformers float32", [float("nan")]))
        for name, times in times_s.items():
            rates = [B * new / t for t in times]
            time_s = statistics.median(times)
            dtype = name.removesuffix(LOOKUP).split()[-1]
            passes_each = passes[name] / arguments.rounds if name in passes else new
            read_gb_s = weights * WEIGHT_BYTES[dtype] * passes_each / time_s / GB
            print(
                f"  {name:<25} {spread(rates)}  "
                f"{theirs_s / time_s:5.2f} × transformers  {read_gb_s / bandwidth_gb_s:4.0%} of the memory's limit  "
                f"{same[name]:4.0%} of the tokens as in the first row"
                + (f"  {new / passes_each:.2f} tokens a pass" if name.endswith(LOOKUP) else "")
            )


def load_model(source: str | Path) -> GPT:
    """Return the model of a directory, or one of a size with random weights."""
    return gpt2core.load_language_model(source)[0] if isinstance(source, Path) else machine.random_model(source)


def n_weights(model: GPT) -> int:
    """Return the number of weights that a pass reads: those of the linear layers."""
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))


def peer_sides(model: GPT, device: torch.device, n_prompts: int = 1) -> dict[str, Decode]:
    """Return the peers of a device that are installed and decode this number of prompts."""
    makers = decoders.peers(device).items()
    return {name: maker(model) for name, maker in makers if not decoders.lacks(name, n_prompts)}


def cpu_sides(n_prompts: int, dtypes: Sequence[str], lookups: Sequence[bool] = (False,)) -> list[str]:
    """Return the names of all sides of a CPU that are installed and decode this number of prompts."""
    theirs = [name for name in decoders.peers(torch.device("cpu")) if not decoders.lacks(name, n_prompts)]
    return theirs + [our_name(dtype, lookup) for dtype in dtypes for lookup in lookups]


def our_name(dtype: str, lookup: bool) -> str:
    """Return the name of our side in a dtype."""
    return f"gpt2core {dtype}{LOOKUP if lookup else ''}"


def our_sides(model: GPT, dtypes: Sequence[str], lookups: Sequence[bool] = (False,)) -> dict[str, Decode]:
    """Return our side in each dtype, without and with lookup."""
    sides: dict[str, Decode] = {}
    for dtype in dtypes:
        packed = counted(pack(model, dtype))
        sides |= {our_name(dtype, lookup): OurSide(packed, lookup) for lookup in lookups}
    return sides


class Apart:
    """A side in a process of its own; `passes` is how often it read the weights so far, None if it does not count."""

    def __init__(self, load: Callable[[], GPT], name: str, pool: ProcessPoolExecutor):
        self._pool = pool
        self.passes: int | None = pool.submit(_start, load, name).result()

    def __call__(self, ids: Tensor, new: int) -> Tensor:
        out, self.passes = self._pool.submit(_decode, ids, new).result()
        return out


_side: Decode  # of this process


def _start(load: Callable[[], GPT], name: str) -> int | None:
    """Make a side of this process."""
    global _side
    model = load()
    if name.startswith("gpt2core "):
        dtype = name.removeprefix("gpt2core ").removesuffix(LOOKUP)
        _side = our_sides(model, [dtype], [name.endswith(LOOKUP)])[name]
    else:
        _side = decoders.peers(torch.device("cpu"))[name](model)
    return getattr(_side, "passes", None)


def _decode(ids: Tensor, new: int) -> tuple[Tensor, int | None]:
    return _side(ids, new), getattr(_side, "passes", None)


@contextlib.contextmanager
def sides_apart(load: Callable[[], GPT], names: Sequence[str]) -> Iterator[dict[str, Decode]]:
    """Start a process for each side; yield what decodes there, by name."""
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        yield {name: Apart(load, name, stack.enter_context(ProcessPoolExecutor(1, spawn))) for name in names}


class Counted:
    """A model's `transformer`, and how often it was called."""

    def __init__(self, transformer: Any):
        self.wte, self.transformer, self.passes = transformer.wte, transformer, 0

    def __call__(self, *arguments: Any) -> Tensor:
        self.passes += 1
        return self.transformer(*arguments)


def counted(packed: Any) -> Any:
    """Return a packed model that counts its passes; on a GPU, the model as it is."""
    if isinstance(packed, InferenceGPT):
        packed.transformer = Counted(packed.transformer)  # type: ignore[assignment]
    return packed


class OurSide:
    """`generate` with packed weights; `passes` is how often it read them so far."""

    def __init__(self, packed: Any, lookup: bool):
        self.packed, self.lookup, self.passes = packed, lookup, 0

    def __call__(self, ids: Tensor, new: int) -> Tensor:
        before = self._passes()
        out = generate(self.packed, ids, new, lookup=self.lookup).cpu()
        self.passes += self._passes() - before if self._passes() else new
        return out

    def _passes(self) -> int:
        return getattr(self.packed.transformer, "passes", 0)


def prompts(shard: Path | None, vocab_size: int, rounds: int, B: int, P: int) -> Tensor:
    """Return [rounds, B, P] ids: from all over a token shard, or the same random ids in each round."""
    if shard is None:
        ids = torch.randint(vocab_size, (B, P), generator=torch.Generator().manual_seed(B))
        return ids.expand(rounds, B, P)
    tokens = open_shard(shard).tokens
    starts = torch.linspace(0, len(tokens) - P, rounds * B).long().tolist()
    return torch.stack([torch.from_numpy(tokens[at : at + P].astype("int64")) for at in starts]).view(rounds, B, P)


def in_turn(
    sides: Mapping[str, Decode], ids: Tensor, new: int
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, int]]:
    """Run each side with each round's ids [rounds, B, P], after a short warm-up.

    Returns:
        Seconds per round; the fraction of new tokens that equal those of the first side; passes in all rounds, of sides
        that count them.
    """
    for side in sides.values():
        side(ids[0], 4)
    counts = {name: getattr(side, "passes", None) for name, side in sides.items()}
    rounds = [{name: timed(functools.partial(side, prompt, new)) for name, side in sides.items()} for prompt in ids]
    first = next(iter(sides))
    times_s = {name: [results[name][0].wall for results in rounds] for name in sides}
    same = {
        name: statistics.mean(
            float((results[name][1] == results[first][1])[:, -new:].float().mean()) for results in rounds
        )
        for name in sides
    }
    passes = {name: sides[name].passes - count for name, count in counts.items() if count is not None}  # type: ignore[attr-defined]
    return times_s, same, passes


if __name__ == "__main__":
    main()
