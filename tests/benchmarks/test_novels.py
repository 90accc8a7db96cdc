"""The half hour of novels: both sides on a small scale, and how their time is told."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import novels
from benchmarks.nanogpt import Config, NanoGPT
from gpt2core.corpus.shards import Shard
from gpt2core.params import Params, load_params
from gpt2core.tokenizer.train import train_char


@pytest.fixture
def data() -> novels.Data:
    text = "In the beginning was the word. " * 200
    tokenizer = train_char([text])
    ids = np.array(tokenizer.encode(text), np.uint16)
    return *(Shard(part, tokenizer.vocab_size, 1, len(part)) for part in (ids[:-600], ids[-600:])), tokenizer


@pytest.fixture
def params() -> Params:
    params = load_params(novels.PROFILE)
    small = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64, "context": 64, "batch_size": 4}
    plain = {"compile": False, "warmup_steps": 5}
    return params.model_copy(update={"pretrain": params.pretrain.model_copy(update=small | plain)})


@pytest.fixture
def small_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novels, "PEER", {"n_layer": 1, "n_head": 2, "n_embd": 32})
    monkeypatch.setattr(torch, "compile", lambda model: model)


@pytest.mark.usefixtures("small_peer")
def test_both_sides_learn(params: Params, data: novels.Data) -> None:
    _, val, tokenizer = data
    for side in (novels.ours, functools.partial(novels.theirs, 64, 4)):
        few, many = (
            novels.bits_per_byte(side(params, data, steps), val, tokenizer.eot_id, 64) for steps in (2, 200)
        )  # fmt: skip
        assert many < 0.5 * few, side


def test_a_side_may_have_gpt2s_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Path) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", str(mirror))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    params = load_params(novels.PROFILE)
    verdict = params.data.model_copy(update={"corpus": "the-verdict"})
    bpe = params.tokenizer.model_copy(update={"vocab_size": 512})
    small = params.model_copy(update={"data": verdict, "tokenizer": bpe})
    for _ in range(2):  # made, then found
        ours, theirs = (novels.load(small, tmp_path / "kept", kind) for kind in (None, "gpt2"))
        text = next((mirror / "the-verdict").glob("*.txt")).read_text()
        for (train, val, tokenizer), vocab_size in ((ours, 512), (theirs, 50257)):
            ids = [*train.tokens.tolist(), *val.tokens.tolist()]
            assert tokenizer.vocab_size == vocab_size and tokenizer.decode(ids).startswith(text[:5000])
        assert ours[1].n_bytes == theirs[1].n_bytes  # of the same text: bits a byte compare


def test_bits_per_byte_of_a_model_that_finds_all_tokens_equally_likely() -> None:
    model = NanoGPT(Config(64, 100, n_layer=1, n_head=1, n_embd=8)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    shard = Shard(np.arange(1000) % 100, 100, 1, n_bytes=3000)
    assert novels.bits_per_byte(model, shard, 99, 64) == pytest.approx(math.log2(100) * 1000 / 3000, rel=1e-5)


def test_the_time_of_a_start_is_told_from_that_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novels, "TIMED_STEPS", 5)
    starts_s, now_s = iter([0.5, 0.1, 0.1]), 100.0
    monkeypatch.setattr(novels, "time", SimpleNamespace(perf_counter=lambda: now_s))

    def train(steps: int) -> torch.nn.Module:
        nonlocal now_s
        now_s += next(starts_s) + 0.02 * steps
        return torch.nn.Identity()

    assert novels.time_s(train) == pytest.approx((0.5, 0.02))
