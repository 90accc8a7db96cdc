"""Greedy responses to the instructions' test set, in batches as in the stage, compared with transformers one by one.

    python -m benchmarks.responses MIRROR [--size 124M] [--rounds 3] [--dtypes float32 int8]

The 110 entries, the prompt, and the split are those of profiles/gpt2-124m.yaml. The weights are random and never
generate `<|endoftext|>`: each response has the length of its reference plus one token, as if that token had ended it.
Therefore both sides generate the same number of tokens, and in float32 the same tokens. Prompts are batched as in the
stage, by their own lengths alone.

In every round, gpt2core answers all prompts in each of its ways, and transformers answers a part of them; after all
rounds, it has answered each prompt once. Other work on the machine therefore affects all sides alike, and nothing is
extrapolated. Encoding the prompts is not counted. Standard error shows the time of each part of a round.

The CPU seconds are the sum over all threads; with one thread, they are more reliable than the wall time if other work
runs on the machine.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import decoders, machine
from benchmarks.machine import Seconds
from gpt2core.config.presets import PRESETS
from gpt2core.inference import generate_batch
from gpt2core.model import GPT
from gpt2core.model.inference import Packed, pack
from gpt2core.params import load_params
from gpt2core.prompts import PROMPTS
from gpt2core.runtime import DECODING_DTYPES
from gpt2core.tasks import instructions

Ids = list[int]
Respond = Callable[[Sequence[Ids], Sequence[int]], list[Ids]]  # prompts, how many new tokens each -> new tokens


def main() -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("mirror", type=Path, help="the folder that holds instruction-data and gpt2-bpe")
    parser.add_argument("--size", choices=list(PRESETS), default="124M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="*", choices=DECODING_DTYPES, default=["float32", "int8"], help="packed ones")
    given = parser.parse_args()
    prompts, lengths = work(given.mirror)
    model = machine.random_model(given.size)
    ours = {"gpt2core, as the stage": our_way(model)}
    ours |= {f"gpt2core, packed {dtype}": our_way(pack(model, dtype)) for dtype in given.dtypes}
    print(machine.description())
    print(
        f"{given.size}, {len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, "
        f"{sum(lengths)} new tokens, {min(lengths)} to {max(lengths)} a response"
    )
    theirs, answered, times, answers = compare(transformers_way(model), ours, prompts, lengths, given.rounds)
    print(f"{'transformers, one by one':<24} {theirs.wall:6.1f} s (CPU {theirs.cpu:.1f} s)")
    for name, rounds in times.items():
        wall_s, cpu_s = (statistics.median(column) for column in zip(*rounds, strict=True))
        same = sum(a == b for pair in zip(answers[name], answered, strict=True) for a, b in zip(*pair, strict=True))
        print(
            f"{name:<24} {wall_s:6.1f} s (CPU {cpu_s:.1f} s), {theirs.wall / wall_s:.1f} times as fast "
            f"(CPU {theirs.cpu / cpu_s:.1f}); {same / sum(lengths):.0%} of the tokens are the same"
        )


def work(mirror: Path) -> tuple[list[Ids], list[int]]:
    """Return the test set's prompts, and the number of tokens of each response, with its end."""
    params = load_params(machine.ROOT / "profiles/gpt2-124m.yaml")
    section = params.finetune_instruct
    entries = instructions.read(mirror / "instruction-data/instruction-data.json")
    test = instructions.split(entries, section.val_fraction, section.test_fraction, params.seed).test
    tokenizer = machine.gpt2_tokenizer(mirror)
    form = PROMPTS[section.prompt]
    prompts = [tokenizer.encode(form(entry["instruction"], entry["input"])) for entry in test]
    return prompts, [len(tokenizer.encode(entry["output"])) + 1 for entry in test]


def our_way(model: Packed) -> Respond:
    return lambda prompts, lengths: generate_batch(model, prompts, lengths, eos_id=None)


def transformers_way(model: GPT) -> Respond:
    """Return transformers' generate, one prompt at a time."""
    way = decoders.transformers_peer(model)
    return lambda prompts, lengths: [
        way(torch.tensor([prompt]), length)[0, len(prompt) :].tolist()
        for prompt, length in zip(prompts, lengths, strict=True)
    ]


def compare(
    theirs: Respond, ours: dict[str, Respond], prompts: Sequence[Ids], lengths: Sequence[int], rounds: int
) -> tuple[Seconds, list[Ids], dict[str, list[Seconds]], dict[str, list[Ids]]]:
    """Answer all prompts in turn, after a short warm-up.

    Returns:
        Time of theirs for all prompts, their answers, and the times per round and the answers of each of ours.

    Raises:
        RuntimeError: an answer has another length than requested.
    """
    parts: list[Seconds] = []
    answered: list[Ids] = [[]] * len(prompts)
    times: dict[str, list[Seconds]] = {name: [] for name in ours}
    answers: dict[str, list[Ids]] = {}
    for way in (theirs, *ours.values()):
        way(prompts[:2], [4, 4])
    for part in range(rounds):
        took, answered[part::rounds] = timed(theirs, prompts[part::rounds], lengths[part::rounds])
        parts.append(took)
        tell(f"round {part + 1}, transformers, {len(prompts[part::rounds])} prompts", took)
        for name, way in ours.items():
            took, answers[name] = timed(way, prompts, lengths)
            times[name].append(took)
            tell(f"round {part + 1}, {name}", took)
    return Seconds(*map(sum, zip(*parts, strict=True))), answered, times, answers


def timed(way: Respond, prompts: Sequence[Ids], lengths: Sequence[int]) -> tuple[Seconds, list[Ids]]:
    """Return time and answers. Raises RuntimeError if an answer has another length than requested."""
    took, answers = machine.timed(functools.partial(way, prompts, lengths))
    if [len(answer) for answer in answers] != list(lengths):
        raise RuntimeError("an answer has not the length asked for: the times say nothing")
    return took, answers


def tell(what: str, took: Seconds) -> None:
    print(f"{what}: {took.wall:.1f} s (CPU {took.cpu:.1f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
