"""Greedy decoding in tokens a second, beside transformers with the same weights.

    python -m benchmarks.generate [--size 124M | --model DIR] [--rounds 5] [--dtypes float32 int8 ...]

All take turns in every round, so that what else the machine does meets them alike. A step reads all weights of the
linear layers once: bytes of these, times steps a second, beside the memory bandwidth measured in the same run, is the
share of what the memory allows.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gpt2core
from benchmarks.machine import GB, description, memory_bandwidth_gb_s
from gpt2core.config import PRESETS
from gpt2core.generate import generate
from gpt2core.model import GPT, GPTConfig
from gpt2core.model.packed import pack
from gpt2core.runtime import DECODING_DTYPES
from gpt2core.weights.names import head_name, to_hf

WORKS = {"one prompt of 32, 128 new": (1, 32, 128), "eight prompts of 64, 128 new": (8, 64, 128)}
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
Generate = Callable[[Tensor, int], Tensor]  # ids [B, P], new tokens -> [B, P + new]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(PRESETS), default="124M", help="of a model with random weights")
    parser.add_argument("--model", type=Path, help="a model directory in its place")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=DECODING_DTYPES, default=list(DECODING_DTYPES))
    arguments = parser.parse_args()
    model = load(arguments.model, arguments.size)
    n_weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    ways: dict[str, Generate] = {}
    if importlib.util.find_spec("transformers"):
        ways["transformers float32"] = transformers_way(model)
    ways |= {f"gpt2core {dtype}": our_way(model, dtype) for dtype in arguments.dtypes}
    print(description())
    bandwidth_gb_s = memory_bandwidth_gb_s()
    print(f"memory: {bandwidth_gb_s:.1f} GB/s read; {n_weights / 1e6:.0f} million weights in linear layers")
    for title, (B, P, new) in WORKS.items():
        ids = torch.randint(model.config.vocab_size, (B, P), generator=torch.Generator().manual_seed(B))
        times_s, outs = in_turn(ways, ids, new, arguments.rounds)
        print(f"\n{title}: tokens/s, median of {arguments.rounds} rounds (least to most)")
        theirs_s = statistics.median(times_s.get("transformers float32", [float("nan")]))
        for name, times in times_s.items():
            rates = sorted(B * new / t for t in times)
            time_s = statistics.median(times)
            dtype = name.split()[-1]
            read_gb_s = n_weights * WEIGHT_BYTES[dtype] * new / time_s / GB
            same = (outs[name] == outs[next(iter(outs))])[:, P:].float().mean()
            print(
                f"  {name:<21} {statistics.median(rates):7.1f} ({rates[0]:.1f} to {rates[-1]:.1f})  "
                f"{theirs_s / time_s:5.2f} × transformers  {read_gb_s / bandwidth_gb_s:4.0%} of the memory's limit  "
                f"{same:4.0%} of the tokens as in the first row"
            )


def load(path: Path | None, size: str) -> GPT:
    """The model in a directory, or one of a size with random weights."""
    if path is None:
        torch.manual_seed(0)
        return GPT(GPTConfig(vocab_size=50257, **PRESETS[size])).eval()
    model, _ = gpt2core.load(path)
    return model


def transformers_peer(model: GPT) -> Any:
    """transformers' model on the same weights, without a copy."""
    import transformers

    config = {key: value for key, value in model.config.to_dict().items() if key != "qkv_bias"}
    with torch.device("meta"):
        peer: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    head = head_name(model.config, is_classifier=False)
    peer.load_state_dict(to_hf(model.state_dict(), model.config, head), strict=False, assign=True)
    peer.tie_weights()
    return peer.eval()


def transformers_way(model: GPT) -> Generate:
    """transformers' generate on the same weights; it never stops early."""
    import transformers

    peer = transformers_peer(model)

    @torch.inference_mode()
    def way(ids: Tensor, new: int) -> Tensor:
        settings = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
        return peer.generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids))

    return way


def our_way(model: GPT, dtype: str) -> Generate:
    packed = pack(model, dtype)
    return lambda ids, new: generate(packed, ids, new)


def in_turn(
    ways: dict[str, Generate], ids: Tensor, new: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of each way in each round, after a short warm-up, and what it generated."""
    times_s: dict[str, list[float]] = {name: [] for name in ways}
    outs: dict[str, Tensor] = {}
    for way in ways.values():
        way(ids, 4)
    for _ in range(rounds):
        for name, way in ways.items():
            start_s = time.perf_counter()
            outs[name] = way(ids, new)
            times_s[name].append(time.perf_counter() - start_s)
    return times_s, outs


if __name__ == "__main__":
    main()
