"""Guessing tokens from the text so far: what is guessed, and that no token is another for it."""

from __future__ import annotations

import doctest
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2core.inference import Sampling, generate, generate_batch, lookup, stream
from gpt2core.inference.lookup import MAX_DRAFT_TOKENS, Lookup
from gpt2core.model import GPT, GPTConfig
from gpt2core.model.inference import pack
from tests.inference.test_engine import slowly
from tests.model.test_gpt import SMALL, random_model

# A small vocabulary, so that pairs come again, and mostly with another token after them.
CONFIG = replace(SMALL, vocab_size=13, n_positions=40)


@contextmanager
def passes(model: GPT) -> Iterator[list[int]]:
    """How many tokens go through the model in each pass."""
    lengths: list[int] = []
    hook = model.transformer.register_forward_hook(lambda module, args, output: lengths.append(args[0].size(1)))
    try:
        yield lengths
    finally:
        hook.remove()


def random_prompt(length: int, seed: int, vocab_size: int = CONFIG.vocab_size) -> list[int]:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


# -- The guess -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(-2, 20))
def test_a_draft_is_what_followed_the_last_two_tokens_before(ids: list[int], limit: int) -> None:
    draft = Lookup(ids).draft(limit)
    assert len(draft) <= max(0, min(limit, MAX_DRAFT_TOKENS))
    text = ids + draft
    if draft:
        before = [place for place in range(2, len(ids)) if ids[place - 2 : place] == ids[-2:]]
        assert any(text[len(ids) :] == text[place : place + len(draft)] for place in before)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 40))
def test_it_does_not_matter_in_how_many_pieces_the_text_comes(ids: list[int], cut: int) -> None:
    pieces = Lookup(ids[:cut])
    pieces.extend(ids[cut:])
    assert pieces.draft(10) == Lookup(ids).draft(10)


def test_of_a_text_without_repeats_nothing_is_guessed() -> None:
    assert Lookup(range(50)).draft(10) == Lookup([]).draft(10) == Lookup([1]).draft(10) == []


def test_the_last_place_is_copied_not_the_first() -> None:
    assert Lookup([1, 2, 3, 1, 2, 4, 1, 2]).draft(1) == [4]


def test_drafts_grow_while_they_are_right_and_end_while_they_are_wrong() -> None:
    right = Lookup([1, 2, 3, 1, 2])
    lengths = [len(right.draft(100))]
    for token in [3, 1, 2] * 10:
        right.extend([token])
        lengths.append(len(right.draft(100)))
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (1, MAX_DRAFT_TOKENS)

    wrong, guessed = Lookup([0, 1]), 0
    for token in range(2, 400):  # 0 1 2 0 1 3 0 1 4 …
        wrong.extend([token, 0, 1])
        guessed += len(wrong.draft(100))
    assert 0 < guessed < 10  # in vain, of 1,200 tokens


def test_what_it_saw_without_guessing_brings_trust_back() -> None:
    guesses = Lookup([0, 1, *(token for n in range(2, 30) for token in (n, 0, 1))])
    guesses.extend([50, 51, 52, 53, 54, 50, 51])
    assert guesses.draft(10) == []
    guesses.extend([52, 53, 54])
    assert guesses.draft(10) == [50]


def test_the_example_in_the_docstring_is_true() -> None:
    assert doctest.testmod(lookup) == (0, 4)


# -- The tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_no_token_is_another_for_it(penalty: float) -> None:
    """Many models and prompts in float64: within the context, over its edge, and from a prompt that is longer."""
    n_right = n_in_vain = 0
    for seed in range(28):
        model = random_model(CONFIG, seed)
        prompt = random_prompt([1, 2, 9, 25, 39, 40, 47][seed % 7], seed)
        new = [1, 2, 3, 12, 30, 50][seed % 6]
        ids = torch.tensor([prompt])
        plain = generate(model, ids, new, repetition_penalty=penalty, lookup=False)
        with passes(model) as lengths:
            assert torch.equal(generate(model, ids, new, repetition_penalty=penalty), plain)
        if seed < 7:
            assert plain[0].tolist() == slowly(model, prompt, new, Sampling(repetition_penalty=penalty))
        # Of t tokens in a pass one is sure, and the others a draft; a pass over the whole context has none.
        drafted = sum(t - 1 for t in lengths[1:] if t < CONFIG.n_positions)
        right = new - len(lengths)
        n_right, n_in_vain = n_right + right, n_in_vain + drafted - right
    assert min(n_right, n_in_vain) > 20


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 45), st.integers(1, 30), st.sampled_from([1.0, 1.2]))
def test_every_limit_gives_the_beginning_of_the_same_text(seed: int, length: int, new: int, penalty: float) -> None:
    ids = torch.tensor([random_prompt(length, seed)])
    whole = generate(MODEL, ids, 30, repetition_penalty=penalty, lookup=False)
    assert torch.equal(generate(MODEL, ids, new, repetition_penalty=penalty), whole[:, : length + new])


MODEL = random_model(CONFIG, 3)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_it_writes_what_transformers_writes_by_prompt_lookup(tmp_path: Path, penalty: float) -> None:
    transformers = pytest.importorskip("transformers")
    from gpt2core.checkpoint.model_dir import save_model
    from gpt2core.tokenizer.train import train_char

    model = random_model(replace(CONFIG, n_positions=90), 1)
    save_model(tmp_path / "m", model, train_char(["abcdefghijkl"]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float64)
    for seed in range(2):
        ids = torch.tensor([random_prompt(12, seed)])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False, eos_token_id=None,
            pad_token_id=0, repetition_penalty=penalty, prompt_lookup_num_tokens=5,
        )  # fmt: skip
        with passes(model) as lengths:
            assert generate(model, ids, 60, repetition_penalty=penalty).tolist() == expected.tolist()
        assert len(lengths) < 60


def test_the_end_of_text_ends_it_in_the_middle_of_a_draft() -> None:
    ids = torch.tensor([random_prompt(9, 2)])
    free = generate(MODEL, ids, 25, lookup=False)
    for eos in set(free[0, 9:].tolist()):
        columns: list[Tensor] = []
        out = generate(MODEL, ids, 25, eos_id=eos, on_tokens=columns.append)
        assert torch.equal(out, generate(MODEL, ids, 25, eos_id=eos, lookup=False))
        n = free[0, 9:].tolist().index(eos) + 1
        assert torch.cat(columns).tolist() == free[0, 9 : 9 + n].tolist()
        expected = free[0, 9 : 9 + n - 1].tolist()
        assert generate_batch(MODEL, ids.tolist(), 25, eos_id=eos) == [expected]


def test_packed_weights_write_the_same() -> None:
    model = random_model(replace(CONFIG, n_embd=64, n_positions=200), 5).float()
    packed = pack(model, "float32")
    for seed in range(5):
        ids = torch.tensor([random_prompt(20, seed)])
        assert torch.equal(generate(packed, ids, 150), generate(packed, ids, 150, lookup=False))


# -- The passes ------------------------------------------------------------------------------------------------------


def loop_model(period: int) -> GPT:
    """A GPT whose token after t is t + 1, modulo `period`, whatever came before."""
    config = GPTConfig(
        vocab_size=period, n_positions=500, n_embd=period, n_layer=1, n_head=1, tie_word_embeddings=False
    )
    model = GPT(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.transformer.wte.weight.copy_(torch.eye(period))
    model.transformer.ln_f.weight.fill_(1)
    model.lm_head.weight.copy_(torch.eye(period).roll(1, 0))
    return model


def test_a_loop_is_written_in_passes_of_the_longest_drafts() -> None:
    model = loop_model(7)
    with passes(model) as lengths:
        out = generate(model, torch.tensor([[0]]), 300)
    assert out[0].tolist() == [n % 7 for n in range(301)]
    assert lengths[:8] == [1] * 8  # one round, until two tokens come again
    assert sum(lengths) == 300  # and nothing in vain, also at the end
    assert lengths.count(1 + MAX_DRAFT_TOKENS) > 20
    assert len(lengths) < 45


def test_where_nothing_comes_again_each_pass_is_of_one_token() -> None:
    model = loop_model(200)
    with passes(model) as lengths:
        generate(model, torch.tensor([[0]]), 150)
    assert lengths == [1] * 150


@pytest.mark.parametrize(
    ("prompts", "options"),
    [([[0]], {"lookup": False}), ([[0], [1]], {}), ([[0]], {"sampling": Sampling(temperature=0.1), "seed": 0})],
    ids=["switched off", "two rows", "drawn"],
)
def test_only_a_single_greedy_row_guesses(prompts: Sequence[Sequence[int]], options: dict[str, Any]) -> None:
    model = loop_model(7)
    with passes(model) as lengths:
        columns: list[Tensor] = list(stream(model, prompts, 50, **options))
    assert lengths == [1] * 50 == [1] * len(columns)
