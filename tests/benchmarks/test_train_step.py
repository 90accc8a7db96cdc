"""The training benchmark: its count of operations against PyTorch's, its sides, and the memory that it sees."""

from __future__ import annotations

import os
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import train_step
from benchmarks.train_step import Work, flops_per_token, new_step
from gpt2core.model import GPTConfig

TINY = Work("tiny", batch_size=2, context=32, dtype="float32", compile=False)


def test_operations_are_those_that_pytorch_counts() -> None:
    """In transformers' GPT-2 with attention written out. PyTorch counts products alone: the formula's biases and norms,
    one weight in a thousand, are none."""
    transformers = pytest.importorskip("transformers")
    from torch._subclasses.fake_tensor import FakeTensorMode

    sizes = dict(n_embd=768, n_layer=2, n_head=12)
    config = transformers.GPT2Config(**sizes, attn_implementation="eager", use_cache=False)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = transformers.GPT2LMHeadModel(config)
        model(input_ids=torch.zeros(1, 1024, dtype=torch.long)).logits.sum().backward()
    target_positions = counter.get_total_flops() / 1024
    assert flops_per_token(GPTConfig(vocab_size=50257, **sizes), 1024) == pytest.approx(target_positions, rel=2e-3)


@pytest.mark.parametrize("side", train_step.SIDES)
def test_each_side_learns_its_batch_from_a_uniform_guess(side: str) -> None:
    if side == "transformers":
        pytest.importorskip("transformers")
    step = new_step(TINY, side, torch.device("cpu"))
    losses = [step().item() for _ in range(4)]
    assert losses[0] == pytest.approx(10.83, abs=0.2)  # ln 50,257
    assert losses[-1] < losses[0] - 0.3


def test_a_worker_times_its_steps() -> None:
    with train_step.worker(TINY, "gpt2core") as ask:
        assert 0 < ask(train_step.step_s) < 60


def end() -> float:
    os._exit(3)


def test_a_worker_that_ends_is_reported() -> None:
    with train_step.worker(TINY, "gpt2core") as ask, pytest.raises(RuntimeError, match="of gpt2core ended"):
        ask(end)


@pytest.mark.slow
def test_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--size", "tiny", "--context", "32", "--no-compile", "--sides", "nanogpt", "gpt2core"]
    train_step.main([*common, "--rounds", "2"])
    speed = capsys.readouterr().out
    for side, relative in (("nanogpt", r"1\.00"), ("gpt2core", r"\d+\.\d\d")):
        found = re.search(rf"{side} +([\d.]+) \(([\d.]+) to ([\d.]+)\) +{relative} × the better peer +MFU +\d+%", speed)
        median, least, most = map(float, found.groups())
        assert least <= median <= most
    train_step.main([*common, "--memory"])
    memory = capsys.readouterr().out
    # Weights, gradients and AdamW's two moments alone are 4 × 29 MB.
    assert all(float(gb) > 0.116 for gb in re.findall(r"([\d.]+) GB", memory))
    assert len(re.findall(r"([\d.]+) GB", memory)) == 2
