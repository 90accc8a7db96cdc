from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.inference import Sampling
from gpt2core.inference.sampling import seed_of_each_row, uniforms

LOGITS = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0, -3.0])  # in falling order
CPU = torch.device("cpu")


def softmax(temperature: float, kept: int) -> list[float]:
    """The distribution over the first `kept` of LOGITS, by the formula."""
    weights = [math.exp(logit / temperature) for logit in LOGITS.tolist()[:kept]]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1.0), 6),
        (Sampling(temperature=0.5), 6),
        (Sampling(temperature=3.0), 6),
        (Sampling(temperature=1.0, top_k=2), 3),  # the tie at the second place stays
        (Sampling(temperature=1.0, top_k=3), 3),
        (Sampling(temperature=1.0, top_k=60), 6),
        (Sampling(temperature=1.0, top_p=0.7), 3),  # 0.52 + 0.19 would do; the tie stays
        (Sampling(temperature=1.0, top_p=0.95), 4),
        (Sampling(temperature=1.0, top_p=1.0), 6),
        (Sampling(temperature=1.0, min_p=0.1), 4),  # exp(-2) = 0.135
        (Sampling(temperature=2.0, min_p=0.2), 5),  # exp(-3 / 2) = 0.22
        (Sampling(temperature=2.0, top_k=4, top_p=0.99), 4),
        (Sampling(temperature=1.0, top_k=5, top_p=0.99, min_p=0.3), 3),
    ],
)
def test_draws_follow_the_exact_distribution(sampling: Sampling, kept: int) -> None:
    n = 20_000
    u = 1 - torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = sampling.draw(LOGITS.expand(n, -1), u).bincount(minlength=6)
    assert not counts[kept:].any()
    assert chisquare(counts[:kept], [n * p for p in softmax(sampling.temperature, kept)]).pvalue > 1e-3


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-6), Sampling(1.0, min_p=1.0)])
def test_the_narrowest_filters_are_greedy(sampling: Sampling) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    assert sampling.draw(logits).tolist() == logits.argmax(-1).tolist()


def test_draws_follow_the_distribution_of_a_penalty() -> None:
    """2 -> 1, 0 -> 0, -3 -> -6: as if the logits had been these."""
    n, sampling = 20_000, Sampling(1.0, repetition_penalty=2.0)
    penalized = sampling.penalize(LOGITS.expand(n, -1), torch.tensor([0, 3, 5, 0]).expand(n, -1))
    assert penalized[0].tolist() == [1, 1, 1, 0, -1, -6]
    u = 1 - torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = [math.exp(x) for x in (1, 1, 1, 0, -1, -6)]
    expected = [n * weight / sum(weights) for weight in weights]
    assert chisquare(sampling.draw(penalized, u).bincount(minlength=6), expected).pvalue > 1e-3


@pytest.mark.parametrize("u", [2**-53, 2**-24, 0.5, 1 - 2**-53, 1.0])
def test_no_number_draws_a_token_that_was_ruled_out(u: float) -> None:
    """The first and the last tokens have no probability at all."""
    logits = torch.full((1, 1000), float("-inf"))
    logits[0, 300:600] = torch.randn(300, generator=torch.Generator().manual_seed(0))
    drawn = Sampling(1.0).draw(logits, torch.tensor([u], dtype=torch.float64)).item()
    assert 300 <= drawn < 600


# -- Beside transformers ---------------------------------------------------------------------------------------------

SEED = st.integers(0, 2**32 - 1)


def random_logits(seed: int, rows: int = 4, vocab_size: int = 400, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


@settings(max_examples=40)
@given(
    SEED,
    st.floats(0.05, 5),
    st.none() | st.integers(1, 500),
    st.none() | st.floats(0.01, 0.999),
    st.none() | st.floats(0.001, 1),
)
def test_filters_are_transformers(
    seed: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    transformers = pytest.importorskip("transformers")
    logits = random_logits(seed)
    theirs = transformers.TemperatureLogitsWarper(temperature)(None, logits)
    theirs = transformers.TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs
    if top_p:  # not where a sum is top_p but for the rounding: theirs begins with the least likely token
        sums = theirs.double().softmax(-1).sort(descending=True).values.cumsum(-1)
        assume(((sums - top_p).abs() > 1e-5).all())
    theirs = transformers.TopPLogitsWarper(top_p)(None, theirs) if top_p else theirs
    theirs = transformers.MinPLogitsWarper(min_p)(None, theirs) if min_p else theirs
    torch.testing.assert_close(Sampling(temperature, top_k, top_p, min_p).filter(logits), theirs)


@pytest.mark.parametrize("top_k", [1, 2, 3, 7, 20])
def test_ties_at_the_kth_place_stay_as_in_transformers(top_k: int) -> None:
    transformers = pytest.importorskip("transformers")
    logits = torch.randint(0, 4, (8, 20), generator=torch.Generator().manual_seed(top_k)).float()
    ours = Sampling(1.0, top_k=top_k).filter(logits)
    assert torch.equal(ours, transformers.TopKLogitsWarper(top_k)(None, logits))
    kth = logits.sort(descending=True).values[:, top_k - 1]
    assert ours.isfinite().sum(-1).tolist() == [(row >= k).sum().item() for row, k in zip(logits, kth, strict=True)]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99, 0.9999])
def test_a_wide_nucleus_is_transformers(top_p: float) -> None:
    """Rows that need some, hundreds and thousands of tokens to hold `top_p`, side by side."""
    transformers = pytest.importorskip("transformers")
    logits = random_logits(0, rows=6, vocab_size=9000) * torch.tensor([3.0, 1.0, 0.5, 0.3, 0.1, 0.01])[:, None]
    ours = Sampling(1.0, top_p=top_p).filter(logits).isfinite()
    theirs = transformers.TopPLogitsWarper(top_p)(None, logits).isfinite()
    # Sums of float32 in another order: where the sum reaches top_p may differ by a token of thousands.
    assert ((ours.sum(-1) - theirs.sum(-1)).abs() <= 1 + theirs.sum(-1) // 2000).all()
    p = logits.double().softmax(-1)
    for row in range(6):
        assert p[row][ours[row]].sum() >= top_p - 1e-5
        assert p[row][ours[row]].sum() - p[row][ours[row]].min() < top_p + 1e-5


@settings(max_examples=40)
@given(SEED, st.floats(0.1, 10), st.integers(1, 60))
def test_the_penalty_is_transformers(seed: int, penalty: float, n_seen: int) -> None:
    transformers = pytest.importorskip("transformers")
    logits = random_logits(seed)
    ids = torch.randint(400, (4, n_seen), generator=torch.Generator().manual_seed(seed))
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    torch.testing.assert_close(Sampling(repetition_penalty=penalty).penalize(logits, ids), theirs)


# -- Chance ----------------------------------------------------------------------------------------------------------


def test_each_rows_numbers_are_its_seeds_alone() -> None:
    together, alone = uniforms([5, 7, 5], CPU), uniforms([7], CPU)
    for _ in range(200):  # over the edges of the blocks in which they are drawn
        first, second, third = next(together).tolist()
        assert first == third != second == next(alone).item()


def test_first_numbers_of_consecutive_seeds_are_uniform_and_independent() -> None:
    """Samples are given consecutive seeds."""
    u = next(uniforms(range(20_000), CPU))
    assert ((u > 0) & (u <= 1)).all()
    assert chisquare(torch.histc(u.float(), 50, 0, 1)).pvalue > 1e-3
    pairs = torch.histogramdd(torch.stack([u[:-1], u[1:]], 1).float(), [10, 10], range=[0.0, 1.0, 0.0, 1.0]).hist
    assert chisquare(pairs.flatten()).pvalue > 1e-3


def test_without_a_seed_torchs_generator_draws() -> None:
    def numbers() -> list[float]:
        torch.manual_seed(3)
        return next(uniforms([None, None], CPU)).tolist()

    assert numbers() == numbers()
    assert len(set(numbers())) == 2


def test_a_single_seed_counts_up_row_by_row() -> None:
    assert seed_of_each_row(3, 4) == [3, 4, 5, 6]
    assert seed_of_each_row([9, 2], 2) == [9, 2]
    assert seed_of_each_row(None, 2) == [None, None]
    with pytest.raises(UserError, match="2 seeds for 3 rows"):
        seed_of_each_row([1, 2], 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", 0),
        ("min_p", 1.01),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.nan),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name}: {value}"):
        Sampling(**{name: value})
