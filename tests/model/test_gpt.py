from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2core.config.presets import PRESETS
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.model.attention import CausalSelfAttention, attention_written_out, fused_attention
from gpt2core.model.kv_cache import KVCache

SMALL = GPTConfig(vocab_size=101, n_positions=24, n_embd=32, n_layer=3, n_head=4)


def random_model(config: GPTConfig = SMALL, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_parameter_counts_are_gpt2s(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257, **PRESETS[size]))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("T", "S"), [(1, 1), (7, 7), (1, 9), (4, 9)])
def test_both_attentions_are_the_same(T: int, S: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 3, T, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 3, S, 8, dtype=torch.float64)
    torch.testing.assert_close(fused_attention(q, k, v), attention_written_out(q, k, v))
    mask = torch.rand(2, 1, T, S) > 0.3
    mask[..., 0] = True
    torch.testing.assert_close(fused_attention(q, k, v, mask), attention_written_out(q, k, v, mask))


def test_attention_is_pytorchs_multihead_attention() -> None:
    torch.manual_seed(0)
    ours = CausalSelfAttention(SMALL).double()
    theirs = nn.MultiheadAttention(SMALL.n_embd, SMALL.n_head, batch_first=True).double()
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.c_attn.weight.data, ours.c_attn.bias.data
    theirs.out_proj.load_state_dict(ours.c_proj.state_dict())
    x = torch.randn(2, 9, SMALL.n_embd, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    expected, _ = theirs(x, x, x, attn_mask=mask, is_causal=True)
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        GPTConfig(vocab_size=57, n_positions=16, n_embd=48, n_layer=1, n_head=1, tie_word_embeddings=False),
        GPTConfig(vocab_size=300, n_positions=64, n_embd=24, n_layer=2, n_head=6, layer_norm_epsilon=1e-3),
    ],
)
def test_logits_and_gradients_are_transformers(config: GPTConfig) -> None:
    transformers = pytest.importorskip("transformers")
    from gpt2core.checkpoint.names import BLOCK

    ours = random_model(config)
    hf_config = transformers.GPT2Config(**config.to_dict(), bos_token_id=0, eos_token_id=0)
    theirs = transformers.GPT2LMHeadModel(hf_config).double().eval()
    transposed = {name for name, _, shape in BLOCK if len(shape) == 2}

    def to_theirs(name: str, tensor: Tensor) -> Tensor:
        return tensor.t() if any(name.endswith(t) for t in transposed) else tensor

    state = {name: to_theirs(name, tensor) for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    ids = torch.randint(config.vocab_size, (3, config.n_positions), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    actual = ours(ids)
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)
    for logits in (actual, expected):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(to_theirs(name, parameter.grad), gradients[name].grad, atol=1e-9, rtol=0)


def test_the_cache_changes_nothing() -> None:
    model = random_model()
    ids = torch.randint(101, (2, 20))
    cache = KVCache(SMALL, 2, 20, device=torch.device("cpu"), dtype=torch.float64)
    parts = [model(part, cache) for part in ids.split([7, 1, 5, 7], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids))


def test_the_future_is_not_seen() -> None:
    model = random_model()
    ids = torch.randint(101, (1, 20))
    changed = ids.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 101
    a, b = model(ids), model(changed)
    torch.testing.assert_close(a[:, :12], b[:, :12], atol=0, rtol=0)
    assert (a[:, 12] != b[:, 12]).any()


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(UserError, match="25 tokens are more than this model's 24 positions"):
        random_model()(torch.zeros(1, 25, dtype=torch.long))


def test_first_weights_are_gpt2s() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=2000, n_embd=256, n_layer=4, n_head=4))
    block = model.transformer.h[0]
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not block.attn.c_attn.bias.any()
    # Nearly uniform predictions: the loss starts at ln V.
    ids = torch.randint(2000, (4, 64))
    assert model.loss(ids, ids.roll(-1, 1), reduction="sum").item() / ids.numel() == pytest.approx(
        math.log(2000), rel=0.03
    )


def test_a_classifier_reads_the_last_token_and_not_the_padding() -> None:
    torch.manual_seed(0)
    model = GPTClassifier(SMALL, ("ham", "spam")).double().eval()
    ids, lengths = torch.randint(101, (3, 12)), torch.tensor([4, 12, 9])
    padded = ids.clone()
    padded[0, 4:] = 7
    torch.testing.assert_close(model(ids, lengths), model(padded, lengths))
    for row in range(3):
        alone = model(ids[row : row + 1, : lengths[row]], lengths[row : row + 1])
        torch.testing.assert_close(model(ids, lengths)[row : row + 1], alone)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="3 heads do not divide"):
        GPTConfig(vocab_size=10, n_embd=32, n_head=3)
    with pytest.raises(UserError, match="n_layer: 0"):
        GPTConfig(vocab_size=10, n_layer=0)
