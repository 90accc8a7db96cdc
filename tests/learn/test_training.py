from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt2core.learn import (
    AdamW,
    GPTModel,
    clip_gradients,
    cross_entropy,
    forward_flops,
    generate_text_simple,
    gpt2_config,
    initialize,
    kv_cache_bytes,
    parameter_counts,
    perplexity,
    small_config,
    softmax,
    train_small,
    train_step,
    training_bytes,
    warmup_cosine,
)
from gpt2core.model import GPT, GPTConfig
from gpt2core.model.kv_cache import KVCache
from gpt2core.tokenizer.train import train_char
from gpt2core.training.schedules import new_schedule
from tests.learn.same import assert_same, random_weights
from tests.learn.test_gpt import CFG, IDS


def test_softmax_is_pytorchs_also_where_e_to_the_x_overflows() -> None:
    x = torch.randn(3, 5, dtype=torch.float64) * 3
    assert_same(softmax, lambda x: x.softmax(-1), [x])
    large = torch.tensor([[1000.0, 999.0, -1000.0]], dtype=torch.float64)
    torch.testing.assert_close(softmax(large), large.softmax(-1))


def test_cross_entropy_is_pytorchs_and_leaves_out_what_does_not_count() -> None:
    logits = torch.randn(6, 11, dtype=torch.float64) * 100
    targets = torch.tensor([1, -100, 10, 0, -100, 3])
    assert_same(lambda x: cross_entropy(x, targets), lambda x: F.cross_entropy(x, targets), [logits])


def test_perplexity_is_the_number_of_equal_choices() -> None:
    assert perplexity(8.49) == pytest.approx(4866, abs=0.5)
    assert perplexity(F.cross_entropy(torch.zeros(1, 50257), torch.tensor([7])).item()) == pytest.approx(
        50257, rel=1e-5
    )


def test_adamw_is_pytorchs_to_the_last_digits() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 4).double(), nn.Linear(5, 4).double()
    theirs.load_state_dict(ours.state_dict())
    options = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    a, b = AdamW(ours.parameters(), **options), torch.optim.AdamW(theirs.parameters(), **options)
    for step in range(50):
        x = torch.randn(8, 5, dtype=torch.float64)
        a.lr = b.param_groups[0]["lr"] = warmup_cosine(step, 0.01, 5, 50)
        for model, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            model(x).pow(2).sum().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-14, rtol=1e-13)


def test_a_weight_without_a_gradient_stays() -> None:
    model = nn.Linear(2, 2)
    before = model.bias.clone()
    optimizer = AdamW(model.parameters())
    F.linear(torch.ones(1, 2), model.weight).sum().backward()
    optimizer.step()
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize(("warmup", "maximum", "ratio"), [(0, 10, 0.0), (3, 20, 0.1), (5, 5, 0.5)])
def test_the_schedule_is_the_pipelines_and_pytorchs(warmup: int, maximum: int, ratio: float) -> None:
    theirs = new_schedule("cosine", warmup, maximum, ratio)
    for step in range(maximum + 5):
        assert warmup_cosine(step, 0.3, warmup, maximum, 0.3 * ratio) == pytest.approx(0.3 * theirs(step), abs=1e-15)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, maximum - warmup), eta_min=0.3 * ratio)
    for step in range(warmup, maximum):
        assert warmup_cosine(step, 0.3, warmup, maximum, 0.3 * ratio) == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_pytorchs(max_norm: float) -> None:
    ours, theirs = random_weights(nn.Linear(5, 4)), random_weights(nn.Linear(5, 4))
    x = torch.randn(8, 5, dtype=torch.float64)
    for model in (ours, theirs):
        model(x).pow(2).sum().backward()
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm).item()
    assert clip_gradients(ours.parameters(), max_norm) == pytest.approx(expected, rel=1e-12)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=0, rtol=1e-5)  # PyTorch adds 1e-6 to the norm


def test_a_step_is_pytorchs_and_learns_a_text_by_heart() -> None:
    torch.manual_seed(0)
    ours, theirs = GPTModel(CFG).double(), GPTModel(CFG).double()
    theirs.load_state_dict(ours.state_dict())
    a, b = AdamW(ours.parameters(), lr=3e-3), torch.optim.AdamW(theirs.parameters(), lr=3e-3)
    inputs, targets = IDS[:, :-1], IDS[:, 1:]
    first = train_step(ours, a, inputs, targets)
    F.cross_entropy(theirs(inputs).flatten(0, 1), targets.flatten()).backward()
    nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    b.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=0)
    for _ in range(100):
        last = train_step(ours, a, inputs, targets)
    assert first > 0.9 * math.log(280) and last < 0.1


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"tie_weights": False}])
@pytest.mark.parametrize("size", ["124M", "355M", "774M", "1558M"])
def test_parameters_by_formula_are_those_of_the_model(size: str, changes: dict) -> None:
    cfg = gpt2_config(size) | changes
    with torch.device("meta"):
        model = GPT(GPTConfig(
            vocab_size=cfg["vocab_size"], n_positions=cfg["context_length"], n_embd=cfg["emb_dim"],
            n_head=cfg["n_heads"], n_layer=cfg["n_layers"], qkv_bias=cfg["qkv_bias"],
            tie_word_embeddings=cfg["tie_weights"],
        ))  # fmt: skip
    assert sum(parameter_counts(cfg).values()) == sum(p.numel() for p in model.parameters())


def test_operations_by_formula_are_those_that_pytorch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = GPTModel(CFG)
    with FlopCounterMode(display=False) as counter:
        model(IDS[:1])
    assert counter.get_total_flops() == forward_flops(CFG, 16)


def test_bytes_by_formula_are_those_of_the_tensors() -> None:
    model = nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 30)).sum().backward()
    optimizer.step()
    held = [t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values()) if t.dim()]
    assert sum(t.numel() * 4 for t in held) == sum(training_bytes(620).values())
    config = GPTConfig(vocab_size=280, n_positions=16, n_embd=24, n_head=3, n_layer=2)
    cache = KVCache(config, 3, 11, device=torch.device("cpu"), dtype=torch.bfloat16)
    held = [tensor for layer in cache.layers for tensor in (layer.k, layer.v)]
    assert kv_cache_bytes(CFG, 11, batch_size=3, bytes_per_number=2) == sum(t.nbytes for t in held)


def test_first_weights_are_gpt2s() -> None:
    torch.manual_seed(0)
    model = GPTModel(CFG | dict(vocab_size=2000, emb_dim=192, n_layers=8))
    initialize(model)
    block = model.trf_blocks[3]
    for weight, std in (
        (model.tok_emb.weight, 0.02), (model.pos_emb.weight, 0.02), (block.att.W_query.weight, 0.02),
        (block.ff.layers[0].weight, 0.02), (block.ff.layers[2].weight, 0.005), (block.att.out_proj.weight, 0.005),
    ):  # fmt: skip
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_a_small_model_learns_a_short_text_by_heart() -> None:
    text = "the cat saw the dog and the dog saw the cat. " * 30
    tokenizer = train_char([text])
    cfg = small_config(tokenizer.vocab_size, context_length=16, n_layers=1)
    model, losses = train_small(text, tokenizer, cfg, steps=60, peak_lr=0.01)
    assert (
        len(losses) == 60 and losses[0] == pytest.approx(math.log(tokenizer.vocab_size), rel=0.1) and losses[-1] < 0.5
    )
    start = torch.tensor([tokenizer.encode("the cat saw the ")])
    assert tokenizer.decode(generate_text_simple(model, start, 3, 16)[0].tolist()).endswith("dog")
