"""The peer against transformers' GPT-2 with an exact GELU, against PyTorch's schedulers, and against what it prints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.nanogpt import Config, NanoGPT, Recipe, configure_optimizer, learning_rate, random_windows, train

SMALL = Config(block_size=16, vocab_size=40, n_layer=2, n_head=2, n_embd=8, bias=True)


def test_loss_and_gradients_are_those_of_transformers_with_an_exact_gelu() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ours = NanoGPT(SMALL).double()
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=8, n_layer=2, n_head=2, activation_function="gelu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.3)
    names = [n for n, _ in ours.named_parameters()]
    transposed = [n for n in names if ".c_" in n and n.endswith("weight")]  # transformers' Conv1D is [in, out]
    state = {n: p.detach().T.clone() if n in transposed else p.detach() for n, p in ours.named_parameters()}
    theirs.load_state_dict({**state, "lm_head.weight": state["transformer.wte.weight"]})
    ids = torch.randint(40, (3, 16), generator=torch.Generator().manual_seed(1))
    loss = ours(ids[:, :-1], ids[:, 1:])
    logits = theirs(ids[:, :-1]).logits  # its own loss rounds to float32
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        grad = theirs_by_name[name].grad
        torch.testing.assert_close(parameter.grad, grad.T if name in transposed else grad)


def test_the_124m_has_the_numbers_that_nanogpt_prints() -> None:
    with torch.device("meta"):
        groups = configure_optimizer(NanoGPT(Config()), Recipe()).param_groups
    counts = [(len(g["params"]), sum(p.numel() for p in g["params"]), g["weight_decay"]) for g in groups]
    assert counts == [(50, 124_354_560, 0.1), (25, 19_200, 0.0)]


def test_schedule_by_hand() -> None:
    recipe = Recipe(learning_rate=1.0, min_lr=0.1, warmup_steps=4, decay_steps=24)
    found = [learning_rate(step, recipe) for step in (0, 3, 4, 14, 24, 100)]
    assert found == pytest.approx([0.2, 0.8, 1.0, 0.55, 0.1, 0.1])


def test_first_weights() -> None:
    torch.manual_seed(0)
    model = NanoGPT(Config(block_size=64, vocab_size=512, n_layer=2, n_head=2, n_embd=256))
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            assert parameter.std().item() == pytest.approx(0.01 if "c_proj" in name else 0.02, rel=0.03), name
        else:
            assert (parameter == 1).all()


def test_it_learns_to_count() -> None:
    torch.manual_seed(0)
    tokens, rng = np.arange(1000, dtype=np.uint16) % 40, np.random.default_rng(0)
    losses: list[float] = []
    train(
        NanoGPT(SMALL), Recipe(0.02, 0.002, 5, 200), lambda: random_windows(tokens, 4, 16, rng), 200,
        lambda step, loss: losses.append(loss.item()),
    )  # fmt: skip
    assert len(losses) == 200
    assert losses[0] == pytest.approx(np.log(40), abs=0.05)
    assert losses[-1] < 0.3
