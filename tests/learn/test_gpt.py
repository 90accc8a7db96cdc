from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gpt2core
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.errors import UserError
from gpt2core.inference import generate
from gpt2core.learn import (
    GELU,
    CausalSelfAttention,
    DeepNetwork,
    DummyGPTModel,
    FeedForward,
    GPTModel,
    LayerNorm,
    TransformerBlock,
    cached_logits,
    generate_text_simple,
    generate_with_cache,
    gpt,
    gpt2_config,
    gradient_sizes,
)
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.model import attention as pipeline_attention
from gpt2core.model import gpt as pipeline
from gpt2core.sources.synthetic import generate_tales
from gpt2core.tokenizer.train import train_bpe
from tests.learn.same import assert_same, random_weights

CFG = dict(vocab_size=280, context_length=16, emb_dim=24, n_heads=3, n_layers=2, drop_rate=0.0, qkv_bias=True)
CONFIG = GPTConfig(vocab_size=280, n_positions=16, n_embd=24, n_head=3, n_layer=2)
TOKENIZER = train_bpe(generate_tales(0, 2), 280)
IDS = torch.randint(280, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_layer_norm_is_pytorchs(x: torch.Tensor) -> None:
    ours = random_weights(LayerNorm(24))
    theirs = nn.LayerNorm(24, eps=1e-5).double()
    theirs.weight.data, theirs.bias.data = ours.scale.data, ours.shift.data
    assert_same(ours, theirs, [x], [(ours.scale, theirs.weight), (ours.shift, theirs.bias)])


def test_a_token_of_one_value_is_normed_to_the_shift() -> None:
    norm = LayerNorm(4)
    torch.testing.assert_close(norm(torch.full((1, 1, 4), 3.0)), torch.zeros(1, 1, 4))


@pytest.mark.parametrize(("exact", "approximate"), [(False, "tanh"), (True, "none")])
def test_both_gelus_are_pytorchs(exact: bool, approximate: str) -> None:
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    assert_same(GELU(exact), lambda x: F.gelu(x, approximate=approximate), [x])


def test_the_two_gelus_differ_by_less_than_they_say() -> None:
    x = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    assert 4e-4 < (GELU()(x) - GELU(exact=True)(x)).abs().max() < 5e-4


def copy_attention(ours: CausalSelfAttention, theirs: pipeline_attention.CausalSelfAttention) -> list:
    """Give `theirs` our weights; the pairs that are the same tensors."""
    for kind in ("weight", "bias"):
        parts = [getattr(linear, kind).detach() for linear in (ours.W_query, ours.W_key, ours.W_value)]
        getattr(theirs.c_attn, kind).data = torch.cat(parts)
    theirs.c_proj.load_state_dict(ours.out_proj.state_dict())
    return [(ours.out_proj.weight, theirs.c_proj.weight), (ours.out_proj.bias, theirs.c_proj.bias)]


def test_causal_self_attention_is_the_pipelines_and_pytorchs(x: torch.Tensor) -> None:
    ours = random_weights(CausalSelfAttention(24, 3, 16))
    theirs = pipeline_attention.CausalSelfAttention(CONFIG).double()
    assert_same(ours, theirs, [x], copy_attention(ours, theirs))
    torchs = nn.MultiheadAttention(24, 3, batch_first=True).double()
    torchs.in_proj_weight.data, torchs.in_proj_bias.data = theirs.c_attn.weight.data, theirs.c_attn.bias.data
    torchs.out_proj.load_state_dict(ours.out_proj.state_dict())
    mask = torch.ones(9, 9, dtype=torch.bool).triu(1)
    assert_same(ours, lambda x: torchs(x, x, x, attn_mask=mask)[0], [x])
    for function in (lambda x: ours(x), lambda x: theirs(x)):
        function(x).pow(2).sum().backward()
    fused = torch.cat([linear.weight.grad for linear in (ours.W_query, ours.W_key, ours.W_value)])
    torch.testing.assert_close(fused, theirs.c_attn.weight.grad, atol=1e-10, rtol=0)


def test_the_future_is_not_seen(x: torch.Tensor) -> None:
    ours = random_weights(CausalSelfAttention(24, 3, 16))
    changed = x.clone()
    changed[:, 6:] += 1
    torch.testing.assert_close(ours(x)[:, :6], ours(changed)[:, :6], atol=0, rtol=0)
    assert (ours(x)[:, 6] != ours(changed)[:, 6]).all()


def test_feed_forward_is_the_pipelines(x: torch.Tensor) -> None:
    ours, theirs = random_weights(FeedForward(CFG)), pipeline.MLP(CONFIG).double()
    theirs.c_fc.load_state_dict(ours.layers[0].state_dict())
    theirs.c_proj.load_state_dict(ours.layers[2].state_dict())
    weights = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert_same(ours, theirs, [x], list(weights))


def test_a_block_is_the_pipelines(x: torch.Tensor) -> None:
    ours, theirs = random_weights(TransformerBlock(CFG)), pipeline.Block(CONFIG).double()
    pairs = copy_attention(ours.att, theirs.attn)
    for norm, theirs_norm in ((ours.norm1, theirs.ln_1), (ours.norm2, theirs.ln_2)):
        theirs_norm.weight.data, theirs_norm.bias.data = norm.scale.data, norm.shift.data
        pairs += [(norm.scale, theirs_norm.weight), (norm.shift, theirs_norm.bias)]
    for linear, theirs_linear in ((ours.ff.layers[0], theirs.mlp.c_fc), (ours.ff.layers[2], theirs.mlp.c_proj)):
        theirs_linear.load_state_dict(linear.state_dict())
        pairs += [(linear.weight, theirs_linear.weight), (linear.bias, theirs_linear.bias)]
    assert_same(ours, theirs, [x], pairs, tolerance=1e-10)


@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": False}, {"tie_word_embeddings": False}, {"n_head": 1, "layer_norm_epsilon": 1e-3}],
    ids=["as GPT-2", "no bias", "a head of its own", "another norm"],
)
def test_a_model_directory_gives_the_pipelines_logits_and_gradients(tmp_path: Path, changes: dict) -> None:
    torch.manual_seed(0)
    config = GPTConfig(**(CONFIG.to_dict() | changes))
    model = GPT(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_model(tmp_path / "m", model, TOKENIZER)
    theirs, _ = gpt2core.load(tmp_path / "m", dtype=torch.float64)
    ours = GPTModel.from_directory(tmp_path / "m", dtype=torch.float64)
    torch.testing.assert_close(ours(IDS), theirs(IDS), atol=1e-9, rtol=0)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    written = generate_text_simple(ours, IDS[:, :3], 12, context_size=16)
    assert torch.equal(written, generate(theirs, IDS[:, :3], 12))
    for logits in (ours(IDS), theirs(IDS)):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    gradients = gpt.rename({name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False)}, 2)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-9, rtol=0)


def test_a_classifiers_directory_gives_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPTClassifier(CONFIG, ("ham", "spam"))
    save_model(tmp_path / "c", model, TOKENIZER)
    theirs, _ = gpt2core.load(tmp_path / "c", dtype=torch.float64)
    ours = GPTModel.from_directory(tmp_path / "c", dtype=torch.float64)
    torch.testing.assert_close(ours(IDS)[:, -1], theirs(IDS, torch.tensor([16, 16])), atol=1e-9, rtol=0)


def test_a_classifier_that_reads_elsewhere_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "c", GPTClassifier(CONFIG, ("ham", "spam"), position="mean"), TOKENIZER)
    with pytest.raises(UserError, match="position: mean; here a classifier reads the last token"):
        GPTModel.from_directory(tmp_path / "c")


def test_the_whole_gpt_is_one_file_under_200_lines() -> None:
    source = inspect.getsource(gpt)
    assert len(source.splitlines()) < 200
    assert "gpt2core.model" not in [line.split()[1] for line in source.splitlines() if line.startswith("from")]


def test_the_usual_config_has_the_usual_number_of_parameters() -> None:
    """163,009,536 with an output layer of its own and no Q/K/V bias; 124,439,808 as GPT-2 is."""
    with torch.device("meta"):
        untied = GPTModel(gpt2_config("124M") | dict(qkv_bias=False, tie_weights=False))
        tied = GPTModel(gpt2_config("124M"))
    assert sum(p.numel() for p in untied.parameters()) == 163_009_536
    assert sum(p.numel() for p in tied.parameters()) == 124_439_808


def test_the_dummy_has_the_shapes_of_the_model() -> None:
    dummy = DummyGPTModel(CFG)
    assert dummy(IDS).shape == GPTModel(CFG)(IDS).shape == (2, 16, 280)
    expected = (dummy.tok_emb.weight[IDS] + dummy.pos_emb.weight[:16]) @ dummy.out_head.weight.T
    torch.testing.assert_close(dummy(IDS), expected)


def test_dropout_works_while_training_only() -> None:
    model = GPTModel(CFG | {"drop_rate": 0.5})
    assert not torch.equal(model(IDS), model(IDS))
    assert torch.equal(model.eval()(IDS), model(IDS))


def test_too_long_a_text_and_uneven_heads_are_refused() -> None:
    with pytest.raises(UserError, match="17 tokens are more than this model's 16 positions"):
        GPTModel(CFG)(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(UserError, match="5 heads do not divide"):
        GPTModel(CFG | {"n_heads": 5})


def test_the_cache_changes_nothing() -> None:
    model = random_weights(GPTModel(CFG), std=0.3)
    past, parts = None, []
    for part in IDS.split([3, 1, 7, 5], dim=1):
        logits, past = cached_logits(model, part, past)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), model(IDS), atol=1e-10, rtol=0)
    prompt = IDS[:, :4]
    assert torch.equal(generate_with_cache(model, prompt, 12), generate_text_simple(model, prompt, 12, 16))


def test_without_shortcuts_gradients_vanish_on_the_way_down() -> None:
    x, target = torch.randn(8, 6), torch.zeros(8, 6)
    sizes = {}
    for shortcuts in (False, True):
        torch.manual_seed(0)
        sizes[shortcuts] = gradient_sizes(DeepNetwork([6] * 13, shortcuts), x, target)
    assert sizes[False][0] < sizes[False][-1] / 1000
    assert sizes[True][0] > sizes[True][-1] / 10


@pytest.mark.parametrize("shortcuts", [False, True])
def test_the_deep_network_is_its_layers_in_turn(shortcuts: bool) -> None:
    network = random_weights(DeepNetwork([4, 4, 3], shortcuts))
    first, second = (layer[0] for layer in network.layers)

    def expected(x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(first(x), approximate="tanh") + (x if shortcuts else 0)
        return F.gelu(second(y), approximate="tanh")

    x = torch.randn(2, 4, dtype=torch.float64)
    assert_same(network, expected, [x], [(p, p) for p in network.parameters()])
