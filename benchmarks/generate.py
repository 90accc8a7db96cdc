"""Speed of greedy decoding, compared with transformers, CTranslate2, and llama.cpp with the same weights.

    python -m benchmarks.generate [--size 124M | --model DIR] [--rounds 5] [--dtypes float32 int8 ...]
    python -m benchmarks.generate --model models/pretrained --prompts data/tokens/val.bin --rounds 20

All take turns in every round, so that other work on the machine affects them alike. Peers that are not installed are
left out. A pass reads all weights of the linear layers once: their bytes times the passes per second, divided by the
memory bandwidth measured in the same run, is the share of what the memory allows.

The rows "lookup" guess tokens from the text so far (`gpt2core.inference.lookup`) and say how many a pass gave. How many
depends on the text alone. Greedy decoding with random weights soon writes the same few tokens again and again, which is
the easiest case there is; with --model and --prompts they are what a trained model makes of texts that it has not read.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
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
    model = (
        gpt2core.load_language_model(arguments.model)[0] if arguments.model else machine.random_model(arguments.size)
    )
    cpu = torch.device("cpu")
    sides = {**peer_sides(model, cpu), **our_sides(model, arguments.dtypes, (False, True))}
    print(machine.description())
    bandwidth_gb_s, weights = machine.memory_bandwidth_gb_s(), n_weights(model)
    print(f"memory: {bandwidth_gb_s:.1f} GB/s read; {weights / 1e6:.0f} million weights in linear layers")
    for title, (B, P, new) in WORKS.items():
        here = {
            name: side for name, side in sides.items()
            if not decoders.lacks(name, B) and (B == 1 or not name.endswith(LOOKUP))
        }  # fmt: skip
        ids = prompts(arguments.prompts, model.config.vocab_size, arguments.rounds, B, P)  # [rounds, B, P]
        times_s, same, passes = in_turn(here, ids, new)
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


def n_weights(model: GPT) -> int:
    """Return the number of weights that a pass reads: those of the linear layers."""
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))


def peer_sides(model: GPT, device: torch.device, n_prompts: int = 1) -> dict[str, Decode]:
    """Return the peers of a device that are installed and decode this number of prompts."""
    makers = decoders.peers(device).items()
    return {name: maker(model) for name, maker in makers if not decoders.lacks(name, n_prompts)}


def our_sides(model: GPT, dtypes: Sequence[str], lookups: Sequence[bool] = (False,)) -> dict[str, Decode]:
    """Return our side in each dtype, without and with lookup."""
    sides: dict[str, Decode] = {}
    for dtype in dtypes:
        packed = counted(pack(model, dtype))
        sides |= {f"gpt2core {dtype}{LOOKUP if lookup else ''}": OurSide(packed, lookup) for lookup in lookups}
    return sides


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
    counts = {name: side.passes for name, side in sides.items() if isinstance(side, OurSide)}
    rounds = [{name: timed(functools.partial(side, prompt, new)) for name, side in sides.items()} for prompt in ids]
    first = next(iter(sides))
    times_s = {name: [results[name][0].wall for results in rounds] for name in sides}
    same = {
        name: statistics.mean(
            float((results[name][1] == results[first][1])[:, -new:].float().mean()) for results in rounds
        )
        for name in sides
    }
    passes = {name: side.passes - counts[name] for name, side in sides.items() if isinstance(side, OurSide)}
    return times_s, same, passes


if __name__ == "__main__":
    main()
