"""The memory benchmark: what learns, and that memory falls with the bytes of a weight."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.lora import steps
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.model import GPT, GPTConfig
from gpt2core.tokenizer.train import train_bpe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model_dir(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    tokenizer = train_bpe(["the lamp and the mill\n" * 9], 270)
    torch.manual_seed(0)
    save_model(tmp_path / "m", GPT(GPTConfig(tokenizer.vocab_size, 64, request.param, n_layer=4, n_head=4)), tokenizer)
    return tmp_path / "m"


@pytest.mark.parametrize("model_dir", [32], indirect=True)
def test_what_learns(model_dir: Path) -> None:
    n_lora = 4 * 8 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    assert [steps(model_dir, kind, 2, 20, 1) for kind in ("float32", "int8", "nf4")] == [n_lora] * 3
    assert steps(model_dir, "all", 2, 20, 1) > 4 * 12 * 32**2


@pytest.mark.slow
@pytest.mark.parametrize("model_dir", [512], indirect=True)
def test_memory_falls_with_the_bytes_of_a_weight(model_dir: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.lora",
        "--model",
        model_dir,
        "--kinds",
        "all",
        "int8",
        "--tokens",
        "20",
    ]
    printed = subprocess.check_output(command, cwd=ROOT, text=True, timeout=300)
    peaks_gb = [float(value) for value in re.findall(r"([\d.]+) GB anonymous", printed)]
    n_weights = 4 * 12 * 512**2
    assert len(peaks_gb) == 2
    assert (
        peaks_gb[0] - peaks_gb[1] > 10 * n_weights / 1e9
    )  # gradients, AdamW's two moments, 3 bytes of the weights: 15
