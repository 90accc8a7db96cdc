"""The benchmark of decoding: each peer writes the same tokens, and our passes are counted."""

from __future__ import annotations

import doctest
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import decoders, generate
from gpt2core.inference import generate as decode
from gpt2core.model import GPT, GPTConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
P, NEW = 6, 12


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(96, n_positions=64, n_embd=64, n_layer=2, n_head=2, initializer_range=0.3)).eval()


def ids_of(n_prompts: int) -> torch.Tensor:
    return torch.randint(96, (n_prompts, P), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "package"), [("transformers float32", "transformers"), ("CTranslate2 float32", "ctranslate2")]
)
def test_a_peer_writes_our_tokens(name: str, package: str, model: GPT) -> None:
    pytest.importorskip(package)
    ids = ids_of(3)
    torch.testing.assert_close(decoders.peers(CPU)[name](model)(ids, NEW), decode(model, ids, NEW))


def test_ctranslate2_in_int8_writes_many_of_our_tokens(model: GPT) -> None:
    pytest.importorskip("ctranslate2")
    ids = ids_of(8)
    out = decoders.peers(CPU)["CTranslate2 int8"](model)(ids, NEW)
    assert (out == decode(model, ids, NEW))[:, P:].float().mean() > 0.25  # 1% by chance
    assert out.shape == (8, P + NEW)


def test_llama_cpp_writes_most_of_our_tokens(model: GPT) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    ids = ids_of(1)
    peer = decoders.peers(CPU)["llama.cpp Q8_0"](model)
    out = peer(ids, NEW)
    assert (out == decode(model, ids, NEW)).float().mean() > 0.8
    torch.testing.assert_close(peer(ids, NEW), out)  # no state is left from the round before


def test_vllm_is_given_the_weights_and_the_ids(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM needs a GPU: a stand-in decodes with the model that transformers reads from the folder."""
    transformers = pytest.importorskip("transformers")
    asked: list[Any] = []

    class LLM:
        def __init__(self, model: str, **settings: Any):
            self.model = transformers.GPT2LMHeadModel.from_pretrained(model)
            asked.append(settings)

        def generate(self, prompts: list[Any], settings: Any, use_tqdm: bool) -> list[Any]:
            asked.append(settings)
            rows = [self.write(prompt["prompt_token_ids"], settings["max_tokens"]) for prompt in prompts]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=row)]) for row in rows]

        def write(self, prompt: list[int], n: int) -> list[int]:
            ids = torch.tensor([prompt])
            settings = transformers.GenerationConfig(max_new_tokens=n, do_sample=False, pad_token_id=0)
            out = self.model.generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids))
            return out[0, len(prompt) :].tolist()

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict))
    ids = ids_of(2)
    torch.testing.assert_close(decoders.vllm_peer(model)(ids, NEW), decode(model, ids, NEW))
    assert asked[0]["dtype"] == "bfloat16" and asked[1]["ignore_eos"] and asked[1]["temperature"] == 0


def test_our_passes_are_counted(model: GPT) -> None:
    sides = generate.our_sides(model, ["float32"], (False, True))
    ids = generate.prompts(None, 96, 2, 1, P)  # [rounds, B, P]
    times_s, same, passes = generate.in_turn(sides, ids, NEW)
    assert passes["gpt2core float32"] == 2 * NEW
    assert 0 < passes["gpt2core float32, lookup"] <= 2 * NEW
    assert same == {name: 1.0 for name in sides} and all(len(times) == 2 for times in times_s.values())


def test_a_model_that_counts_no_passes_makes_one_per_token(model: GPT) -> None:
    """As on a GPU, where `pack` returns the module."""
    side = generate.OurSide(model, lookup=False)
    side(ids_of(2), NEW)
    assert side.passes == NEW


def test_what_a_peer_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("vllm", "gguf") else name)
    assert decoders.lacks("vLLM bfloat16") == "vllm not installed"
    assert decoders.lacks("llama.cpp Q8_0") == "gguf not installed"
    assert decoders.lacks("gpt2core int8", 8) == decoders.lacks("transformers float32") == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert decoders.lacks("llama.cpp Q8_0") == ""
    assert decoders.lacks("llama.cpp Q8_0", 8) == "llama.cpp decodes one prompt"


def test_peers_of_a_gpu() -> None:
    assert list(decoders.peers(CUDA)) == ["transformers bfloat16", "vLLM bfloat16"]


def test_the_examples() -> None:
    assert doctest.testmod(decoders).failed == 0
