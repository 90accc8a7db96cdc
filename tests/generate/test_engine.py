from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from gpt2core.errors import UserError
from gpt2core.generate import Sampling, generate, generate_batch
from gpt2core.model import GPT
from tests.model.test_gpt import SMALL, random_model


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model()


def greedy_slowly(model: GPT, ids: list[int], new: int) -> list[int]:
    """Without a cache: the whole visible prefix for each token."""
    for _ in range(new):
        logits = model(torch.tensor([ids[-model.config.n_positions :]]))
        ids = [*ids, int(logits[0, -1].argmax())]
    return ids


@pytest.mark.parametrize(("prompt", "new"), [(1, 5), (7, 17), (7, 30), (24, 4), (30, 4)])
def test_greedy_is_the_likeliest_token_each_time(model: GPT, prompt: int, new: int) -> None:
    """Within the context, over its edge, and from a prompt that is longer."""
    ids = torch.randint(101, (2, prompt), generator=torch.Generator().manual_seed(3))
    out = generate(model, ids, new)
    assert out.tolist() == [greedy_slowly(model, row, new) for row in ids.tolist()]


def test_greedy_is_transformers(model: GPT, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    from gpt2core.tokenizer.train import train_char
    from gpt2core.weights.model_dir import save_model

    save_model(tmp_path / "m", model, train_char(["".join(map(chr, range(32, 127))) + "\n\t\r\0\1"]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float64)
    ids = torch.randint(100, (3, 6))
    expected = theirs.generate(ids, max_new_tokens=15, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(model, ids, 15).tolist() == expected.tolist()


def test_rows_of_unequal_length_are_what_each_is_alone(model: GPT) -> None:
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(100, (n,), generator=generator).tolist() for n in (3, 11, 1, 20, 7, 11)]
    eos = 17
    answers = generate_batch(model, prompts, 8, eos_id=eos, batch_size=4)
    for prompt, answer in zip(prompts, answers, strict=True):
        room = min(8, SMALL.n_positions - len(prompt))
        alone = generate(model, torch.tensor([prompt]), room, eos_id=eos)[0, len(prompt) :].tolist()
        assert answer == (alone[: alone.index(eos)] if eos in alone else alone)


def test_a_finished_row_stays_finished(model: GPT) -> None:
    ids = torch.randint(101, (4, 3), generator=torch.Generator().manual_seed(1))
    free = generate(model, ids, 10)
    eos = int(free[0, 6])
    out = generate(model, ids, 10, eos_id=eos)
    for row in out[:, 3:].tolist():
        if eos in row:
            assert set(row[row.index(eos) :]) == {eos}


def test_a_seed_repeats_and_another_differs(model: GPT) -> None:
    ids = torch.zeros(1, 1, dtype=torch.long)
    a, b, c = (generate(model, ids, 20, temperature=1.0, seed=s).tolist() for s in (1, 1, 2))
    assert a == b != c


LOGITS = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0, -3.0])


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=1.0), 6),
        (Sampling(temperature=0.5), 6),
        (Sampling(temperature=1.0, top_k=2), 3),  # the tie at the second place stays
        (Sampling(temperature=1.0, top_k=1), 1),
        (Sampling(temperature=1.0, top_p=0.7), 2),
        (Sampling(temperature=2.0, top_k=4, top_p=0.99), 4),
    ],
)
def test_draws_follow_the_exact_distribution(sampling: Sampling, allowed: int) -> None:
    p = (LOGITS.double() / sampling.temperature).softmax(0)
    kept = p.clone()
    kept[allowed:] = 0  # LOGITS is in falling order
    expected = kept / kept.sum()
    n = 20_000
    draws = sampling.draw(LOGITS.expand(n, -1), torch.Generator().manual_seed(0))
    counts = draws.bincount(minlength=6)
    assert not counts[allowed:].any()
    assert chisquare(counts[:allowed], (expected * n)[:allowed]).pvalue > 1e-3 if allowed > 1 else True


def test_filters_are_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    ours = Sampling(temperature=0.7, top_k=12, top_p=0.8).filter(logits)
    theirs = transformers.TemperatureLogitsWarper(0.7)(None, logits)
    theirs = transformers.TopKLogitsWarper(12)(None, theirs)
    theirs = transformers.TopPLogitsWarper(0.8)(None, theirs)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.5}])
def test_wrong_options_are_refused(model: GPT, wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        generate(model, torch.zeros(1, 1, dtype=torch.long), 1, **wrong)


def test_empty_and_overlong_prompts_are_refused(model: GPT) -> None:
    with pytest.raises(UserError, match="empty"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), 1)
    with pytest.raises(UserError, match="prompt 1: 24 tokens"):
        generate_batch(model, [[1], [1] * 24], 4, eos_id=0)
