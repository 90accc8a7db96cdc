"""The benchmark of responses: both sides make the same tokens, as many as are asked for, each prompt once in theirs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from benchmarks.responses import Ids, compare, our_way, timed, transformers_way
from gpt2core.model import GPT, GPTConfig

PROMPTS = [[1, 2, 3], [7], [5, 4], [9, 9, 8, 30], [2, 6]]
LENGTHS = [4, 1, 6, 2, 3]


def test_both_sides_make_the_same_tokens() -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = GPT(GPTConfig(40, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)).eval()
    theirs = transformers_way(model)
    asked: list[Ids] = []

    def counting(prompts: Sequence[Ids], lengths: Sequence[int]) -> list[Ids]:
        asked.extend(prompts)
        return theirs(prompts, lengths)

    took, answered, times, answers = compare(counting, {"ours": our_way(model)}, PROMPTS, LENGTHS, rounds=2)
    assert answered == answers["ours"] and len(set(map(tuple, answered))) == 5
    assert sorted(asked) == sorted([*PROMPTS[:2], *PROMPTS])  # after the warm-up each once
    assert len(times["ours"]) == 2 and took.wall > 0


def test_times_of_shorter_answers_are_refused() -> None:
    with pytest.raises(RuntimeError, match="length"):
        timed(lambda prompts, lengths: [[0] * (length - (length == 6)) for length in lengths], PROMPTS, LENGTHS)
