"""Packed models against the module they were made of, in float64 and with the same rounding of the weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gpt2core
from gpt2core.checkpoint import openai
from gpt2core.errors import UserError
from gpt2core.evaluation.metrics.language_model import nats
from gpt2core.inference import generate, generate_batch
from gpt2core.model import GPT, GPTConfig
from gpt2core.model.inference import pack
from gpt2core.model.kv_cache import KVCache
from gpt2core.runtime import DECODING_DTYPES
from gpt2core.sources.synthetic.tales import generate_tales

CONFIG = GPTConfig(vocab_size=101, n_positions=24, n_embd=64, n_layer=2, n_head=4)
CONFIGS = [CONFIG, replace(CONFIG, qkv_bias=False), replace(CONFIG, tie_word_embeddings=False)]


def random_model(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():  # biases and norms too
        nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


def rounded(weight: Tensor, dtype: str) -> Tensor:
    """[out, in] as the packed layer holds it."""
    if dtype == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale
    return weight.to(getattr(torch, dtype)).to(weight.dtype)


def reference(model: GPT, dtype: str) -> GPT:
    """In float64, with only the linear layers' weights rounded."""
    model = copy.deepcopy(model)
    head = nn.Linear(model.config.n_embd, model.config.vocab_size, bias=False)
    head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)  # the embedding is not rounded
    model.lm_head = head
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(rounded(layer.weight, dtype))
    return model.double()


# What inputs that are rounded, too, may add, as a share of the logits' spread. float16's inputs are float32.
TOLERANCE = {"float32": 1e-5, "float16": 1e-5, "bfloat16": 0.02, "int8": 0.05}


@pytest.mark.parametrize("config", CONFIGS, ids=["GPT-2", "no QKV bias", "untied head"])
@pytest.mark.parametrize("dtype", DECODING_DTYPES)
def test_logits_are_those_of_the_rounded_weights(config: GPTConfig, dtype: str) -> None:
    model = random_model(config)
    ids = torch.randint(101, (3, 24), generator=torch.Generator().manual_seed(1))
    expected, found = reference(model, dtype)(ids), pack(model, dtype)(ids)
    assert found.shape == expected.shape
    error = (found.double() - expected).pow(2).mean().sqrt() / expected.std()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DECODING_DTYPES)
def test_a_token_at_a_time_with_the_cache_is_the_whole_at_once(dtype: str) -> None:
    packed = pack(random_model(CONFIG), dtype)
    ids = torch.randint(101, (1, 20), generator=torch.Generator().manual_seed(2))
    whole = packed(ids)
    cache = KVCache(CONFIG, 1, 20, device=ids.device, dtype=torch.float32)
    steps = torch.cat([packed(ids[:, t : t + 1], cache) for t in range(20)], dim=1)
    assert (steps - whole).pow(2).mean().sqrt() < TOLERANCE[dtype] * whole.std()


def test_float32_generates_what_the_model_does() -> None:
    """Alone, beyond the context, and in batches of unequal prompts."""
    model = random_model(CONFIG)
    packed = pack(model, "float32")
    ids = torch.randint(101, (2, 7), generator=torch.Generator().manual_seed(3))
    assert generate(packed, ids, 30).tolist() == generate(model, ids, 30).tolist()
    prompts = [[5, 6, 7], [8], [9] * 11]
    expected = generate_batch(model, prompts, 10, eos_id=None)
    assert generate_batch(packed, prompts, 10, eos_id=None) == expected


def test_a_row_of_int8_is_not_spoiled_by_a_large_neighbour() -> None:
    model = random_model(CONFIG)
    layer, exact = pack(model, "int8").transformer.blocks[0].c_fc, reference(model, "int8").transformer.h[0].mlp.c_fc
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(4))
    x[2] *= 1e4
    for row, expected in zip(layer(x), exact(x.double()), strict=True):
        assert (row - expected).pow(2).mean().sqrt() < 0.03 * expected.std()


@pytest.mark.parametrize("dtype", DECODING_DTYPES)
def test_packing_leaves_the_model_as_it_was(dtype: str) -> None:
    model = random_model(CONFIG)
    before = copy.deepcopy(model.state_dict())
    packed = pack(model, dtype)
    packed(torch.tensor([[1, 2, 3]]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert packed.transformer.wte.weight is model.transformer.wte.weight


def test_the_context_is_kept() -> None:
    with pytest.raises(UserError, match="25 tokens are more than this model's 24 positions"):
        pack(random_model(CONFIG), "float32")(torch.zeros(1, 25, dtype=torch.long))


def test_unknown_dtypes_and_places_are_refused() -> None:
    model = random_model(CONFIG)
    with pytest.raises(UserError, match="'int4' is not known; allowed: float32, bfloat16, float16, int8"):
        pack(model, "int4")
    with pytest.raises(UserError, match="int8 is for CPUs and the model is on meta"):
        pack(model.to("meta"), "int8")


def test_where_pytorch_lacks_the_libraries_it_still_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac with Apple's processor."""
    model, ids = random_model(CONFIG), torch.tensor([[1, 2, 3]])
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])
    torch.testing.assert_close(pack(model, "float32")(ids), model(ids))
    expected = reference(model, "bfloat16")(ids)
    found = pack(model, "bfloat16")(ids).double()
    assert (found - expected).pow(2).mean().sqrt() < TOLERANCE["bfloat16"] * expected.std()
    for dtype in ("float16", "int8"):
        with pytest.raises(UserError, match=f"{dtype} needs FBGEMM"):
            pack(model, dtype)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, np.ndarray, int]:
    """The package's small GPT-2, which was trained on the tales, and tales that it has not read."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    openai.convert(Path(gpt2core.__file__).parent / "assets" / "openai-tiny", folder)
    model, tokenizer = gpt2core.load(folder)
    text = "\n".join(generate_tales(seed=987, n_documents=30))
    return model, np.asarray(tokenizer.encode(text)), tokenizer.eot_id


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("bfloat16", 0.01), ("float16", 1e-3), ("int8", 0.02)])
def test_what_a_dtype_costs_in_loss(trained: tuple[GPT, np.ndarray, int], dtype: str, limit: float) -> None:
    """Nats a token of a trained model, which has the outliers that random weights have not."""
    model, tokens, eot_id = trained
    context = model.config.n_positions
    exact = nats(model, tokens, eot_id, context) / len(tokens)
    assert abs(nats(pack(model, dtype), tokens, eot_id, context) / len(tokens) - exact) < limit
