from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from gpt2core.inference import Sampling
from gpt2core.learn import (
    GPTModel,
    draw,
    generate_by_sampling,
    generate_text_simple,
    greedy,
    keep_top_k,
    keep_top_p,
    scale_by_temperature,
)
from tests.learn.same import random_weights
from tests.learn.test_gpt import CFG, IDS


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * 2


def test_greedy_is_the_pipelines(logits: Tensor) -> None:
    assert torch.equal(greedy(logits), Sampling().draw(logits))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("k", [None, 1, 7, 30, 99])
@pytest.mark.parametrize("p", [None, 0.05, 0.5, 0.9])
def test_the_filters_are_the_pipelines(logits: Tensor, temperature: float, k: int | None, p: float | None) -> None:
    ours = scale_by_temperature(logits, temperature)
    ours = ours if k is None else keep_top_k(ours, k)
    ours = ours if p is None else keep_top_p(ours, p)
    theirs = Sampling(temperature, k, p).filter(logits)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


def test_ties_at_the_last_place_stay() -> None:
    tied = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert keep_top_k(tied, 2).isfinite().tolist() == [[True, True, True, False]]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, float("-inf"), 0.0, -1.0], dtype=torch.float64)
    n = 20_000
    counts = draw(logits.expand(n, -1), torch.Generator().manual_seed(0)).bincount(minlength=5)
    assert counts[2] == 0
    seen = [0, 1, 3, 4]
    assert chisquare(counts[seen], logits.softmax(0)[seen] * n).pvalue > 1e-3


def test_top_1_is_greedy_and_a_seed_repeats() -> None:
    model = random_weights(GPTModel(CFG), std=0.3)
    prompt = IDS[:, :5]
    simple = generate_text_simple(model, prompt, 20, 16)
    assert simple.shape == (2, 25) and torch.equal(simple[:, :5], prompt)
    for end in range(5, 25):  # each token is the likeliest after what the model can see
        assert torch.equal(simple[:, end], model(simple[:, max(0, end - 16) : end])[:, -1].argmax(-1))
    assert torch.equal(simple, generate_by_sampling(model, prompt, 20, 16, top_k=1))
    assert torch.equal(simple, generate_by_sampling(model, prompt, 20, 16, top_p=1e-9))
    a, b, c = (generate_by_sampling(model, prompt, 20, 16, temperature=2.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
