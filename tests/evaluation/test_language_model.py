from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2core.evaluation.metrics.language_model import nats
from gpt2core.evaluation.metrics.trigram import Trigram
from gpt2core.model import GPT, GPTConfig

MODEL = GPT(GPTConfig(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()


@pytest.mark.parametrize("n", [1, 5, 16, 17, 24, 100])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_nats_scores_each_token_once_with_half_a_context(n: int, batch_size: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 20, n)
    ids = torch.tensor([19, *tokens.tolist()])
    total, context, stride = 0.0, 16, 8
    for target in range(1, n + 1):
        # The window that counts this token: the first reaches 16 targets, each further one 8 more.
        window = 0 if target <= context else -(-(target - context) // stride)
        logits = MODEL(ids[window * stride : target][None])
        total += F.cross_entropy(logits[0, -1], ids[target]).item()
    assert nats(MODEL, tokens, 19, context, batch_size=batch_size) == pytest.approx(total, rel=1e-5)


def test_trigram_is_kneser_ney_as_it_is_written() -> None:
    """Against dictionaries and the textbook's formula, and the sum of all words is 1."""
    rng = np.random.default_rng(1)
    V = 6
    tokens = rng.choice(V, 400, p=[0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    model = Trigram(tokens, V)

    tri = Counter(zip(tokens[:-2], tokens[1:-1], tokens[2:], strict=True))
    bi = Counter((v, w) for _, v, w in tri)
    uni = Counter(w for _, w in bi)

    def discount(counts: Counter) -> float:
        n = Counter(counts.values())
        return n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5

    def smoothed(counts: Counter, context: tuple, w: int, lower: float) -> float:
        row = {key[-1]: c for key, c in counts.items() if key[:-1] == context}
        if not row:
            return lower
        d, total = discount(counts), sum(row.values())
        return max(row.get(w, 0) - d, 0) / total + d * len(row) / total * lower

    def p(u: int, v: int, w: int) -> float:
        base = smoothed(Counter({(k,): c for k, c in uni.items()}), (), w, 1 / V)
        return smoothed(tri, (u, v), w, smoothed(bi, (v,), w, base))

    grid = np.array(list(itertools.product(range(V), repeat=3)))
    ours = model.probabilities(grid[:, :2], grid[:, 2])
    np.testing.assert_allclose(ours, [p(*row) for row in grid.tolist()], rtol=1e-12)
    sums: defaultdict[tuple, float] = defaultdict(float)
    for (u, v, _), value in zip(grid.tolist(), ours, strict=True):
        sums[u, v] += value
    assert all(total == pytest.approx(1) for total in sums.values())


def test_trigram_of_a_sure_thing_costs_little_and_of_noise_its_entropy() -> None:
    cycle = np.tile(np.arange(5), 2000)
    assert Trigram(cycle, 5).nats(cycle[:1000], 0) / 1000 < 0.01
    noise = np.random.default_rng(0).integers(0, 8, 200_000)
    assert Trigram(noise[:150_000], 8).nats(noise[150_000:], 0) / 50_000 == pytest.approx(math.log(8), rel=0.01)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_a_trigram_of_next_to_nothing_knows_next_to_nothing(n: int) -> None:
    model = Trigram(np.arange(n), 6)
    p = [float(model.probabilities(np.array([[0, 1]]), np.array([word]))[0]) for word in range(6)]
    assert sum(p) == pytest.approx(1)
    assert min(p) > 0
