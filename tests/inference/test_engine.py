from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from gpt2core.errors import UserError
from gpt2core.inference import Sampling, generate, generate_batch, stream
from gpt2core.inference.sampling import uniforms
from gpt2core.model import GPT
from tests.model.test_gpt import SMALL, random_model

GREEDY = Sampling()
DRAWN = Sampling(temperature=1.5, top_k=60, top_p=0.98, min_p=0.001)
PENALIZED = Sampling(repetition_penalty=1.7)
ALL = Sampling(temperature=1.2, top_p=0.95, repetition_penalty=1.4)
KINDS = pytest.mark.parametrize(
    "sampling", [GREEDY, DRAWN, PENALIZED, ALL], ids=["greedy", "drawn", "penalized", "all"]
)
LENGTHS = (3, 11, 1, 20, 7, 11)


@pytest.fixture(scope="module")
def model() -> GPT:
    """In float64, of 24 positions."""
    return random_model()


def random_prompts(lengths: Sequence[int], seed: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(101, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def slowly(model: GPT, ids: list[int], new: int, sampling: Sampling = GREEDY, seed: int = 0) -> list[int]:
    """What one row becomes: no cache, no batch, the whole visible text for each token."""
    chance = uniforms([seed], torch.device("cpu"))
    for _ in range(new):
        logits = model(torch.tensor([ids[-model.config.n_positions :]]))[:, -1]
        for token in set(ids) if sampling.repetition_penalty != 1 else ():
            logits[0, token] *= sampling.repetition_penalty ** (1 if logits[0, token] < 0 else -1)
        token = logits.argmax() if sampling.greedy else sampling.draw(logits, next(chance))
        ids = [*ids, int(token)]
    return ids


def by_options(sampling: Sampling) -> dict:
    return {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}


# -- generate --------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(("prompt", "new"), [(1, 5), (7, 17), (7, 30), (23, 1), (24, 4), (30, 4)])
def test_the_cache_changes_no_token(model: GPT, prompt: int, new: int, sampling: Sampling) -> None:
    """Within the context, over its edge, and from a prompt that is longer."""
    ids = torch.tensor(random_prompts([prompt, prompt], seed=3))
    out = generate(model, ids, new, seed=11, **by_options(sampling))
    assert out.tolist() == [slowly(model, row, new, sampling, 11 + r) for r, row in enumerate(ids.tolist())]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_transformers(model: GPT, tmp_path, penalty: float) -> None:
    transformers = pytest.importorskip("transformers")
    from gpt2core.checkpoint.model_dir import save_model
    from gpt2core.tokenizer.train import train_char

    save_model(tmp_path / "m", model, train_char(["".join(map(chr, range(32, 127))) + "\n\t\r\0\1"]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float64)
    ids = torch.tensor(random_prompts([6, 6, 6]))
    expected = theirs.generate(
        ids, max_new_tokens=15, do_sample=False, eos_token_id=None, pad_token_id=0, repetition_penalty=penalty
    )
    assert generate(model, ids, 15, repetition_penalty=penalty).tolist() == expected.tolist()


def test_a_finished_row_stays_finished(model: GPT) -> None:
    ids = torch.tensor(random_prompts([3] * 4, seed=1))
    free = generate(model, ids, 10)
    eos = int(free[0, 6])
    columns: list[list[int]] = []
    out = generate(model, ids, 10, eos_id=eos, on_tokens=lambda column: columns.append(column.tolist()))
    for ended, whole in zip(out[:, 3:].tolist(), free[:, 3:].tolist(), strict=True):
        n = whole.index(eos) if eos in whole else 10
        assert ended == whole[:n] + [eos] * (10 - n)
    assert torch.tensor(columns).T.tolist() == out[:, 3 : 3 + len(columns)].tolist()


def test_it_stops_when_all_rows_have_ended(model: GPT) -> None:
    ids = torch.tensor(random_prompts([3]))
    eos = int(generate(model, ids, 1)[0, 3])
    columns: list[int] = []
    out = generate(model, ids, 10, eos_id=eos, on_tokens=lambda column: columns.append(1))
    assert len(columns) == 1
    assert out[0, 3:].tolist() == [eos] * 10


# -- A common beginning ----------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    ("shared", "ends"),
    [
        (16, (1, 4, 2)),
        (12, (3, 3, 3, 3)),
        (11, (9, 1, 1, 12)),
        (20, (0, 3, 1)),
        (15, (30, 1, 2)),
        (9, (14, 14, 2, 1, 0)),
    ],
    ids=str,
)
def test_what_all_rows_begin_with_is_computed_once_and_changes_no_token(
    model: GPT, shared: int, ends: Sequence[int], sampling: Sampling
) -> None:
    """Also rows that are no more than it, whose last token is then computed in the next pass, and rows that slide."""
    (beginning,) = random_prompts([shared], seed=9)
    prompts = [beginning + end for end in random_prompts(ends)]
    answers = generate_batch(model, prompts, 9, eos_id=None, sampling=sampling, seed=2, slide=True)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert prompt + answer == slowly(model, prompt, 9, sampling, 2 + row)


def test_a_common_beginning_spares_tokens(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[int, ...]] = []
    forward = model.transformer.forward
    monkeypatch.setattr(
        model.transformer, "forward", lambda ids, *rest: computed.append(ids.shape) or forward(ids, *rest)
    )
    (beginning,) = random_prompts([12], seed=9)
    prompts = [beginning + [1 + row] * (1 + row) for row in range(4)]
    generate_batch(model, prompts, 2, eos_id=None)
    assert computed == [(1, 12), (4, 4), (4, 1)]  # the longest row has 16 tokens
    computed.clear()
    generate(model, torch.tensor([beginning] * 50), 1)  # samples of one prompt
    assert computed == [(1, 11), (50, 1)]
    computed.clear()
    generate_batch(model, prompts[:2], 1, eos_id=None)
    assert computed == [(2, 14)]  # twelve tokens are not worth a pass of their own


# -- Unequal lengths -------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("lengths", [LENGTHS, (24, 2, 23), (40, 30, 24, 25, 5), (9, 9)], ids=str)
def test_rows_of_unequal_length_are_what_each_is_alone(model: GPT, lengths: Sequence[int], sampling: Sampling) -> None:
    """Rows slide out of the context one after another, or from the first token on."""
    prompts = random_prompts(lengths)
    answers = generate_batch(model, prompts, 14, eos_id=None, sampling=sampling, seed=2, batch_size=4, slide=True)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert prompt + answer == slowly(model, prompt, 14, sampling, 2 + row)


@KINDS
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_answers_end_at_the_end_of_text_or_with_the_context(model: GPT, batch_size: int, sampling: Sampling) -> None:
    prompts = random_prompts((*LENGTHS, 23, 2, 15))
    eos = slowly(model, prompts[0], 4, sampling)[-1]
    answers = generate_batch(model, prompts, 20, eos_id=eos, sampling=sampling, seed=0, batch_size=batch_size)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        room = min(20, SMALL.n_positions - len(prompt))
        whole = slowly(model, prompt, room, sampling, row)[len(prompt) :]
        assert answer == (whole[: whole.index(eos)] if eos in whole else whole)
    assert len(answers[0]) < 4
    assert any(len(prompt) + len(answer) == SMALL.n_positions for prompt, answer in zip(prompts, answers, strict=True))


@KINDS
@pytest.mark.parametrize("slide", [False, True])
def test_rows_that_have_ended_are_left_out(model: GPT, slide: bool, sampling: Sampling) -> None:
    prompts, limits = random_prompts(LENGTHS), [2, 12, 0, 4 + 3 * slide, 9, 2]  # the fourth fills or leaves the context
    n_rows: list[int] = []
    ended: list[int] = []
    hook = model.transformer.register_forward_hook(lambda module, args, output: n_rows.append(args[0].size(0)))
    try:
        answers = generate_batch(
            model, prompts, limits, eos_id=None, sampling=sampling, seed=7, slide=slide,
            on_answer=lambda: ended.append(len(n_rows)),
        )  # fmt: skip
    finally:
        hook.remove()
    for row, (prompt, limit, answer) in enumerate(zip(prompts, limits, answers, strict=True)):
        assert prompt + answer == slowly(model, prompt, limit, sampling, 7 + row)
    assert sorted(ended) == sorted(limit for limit in limits if limit)
    assert n_rows == [6] * 2 + [3] * (limits[3] - 2) + [2] * (9 - limits[3]) + [1] * 3


def test_no_prompts_have_no_answers(model: GPT) -> None:
    assert generate_batch(model, [], 4, eos_id=0) == []


# -- Seeds -----------------------------------------------------------------------------------------------------------


def test_a_row_draws_by_its_own_seed_whatever_its_neighbours(model: GPT) -> None:
    prompts, seeds = random_prompts(LENGTHS), [40, 41, 42, 40, 0, 2**40]

    def answers(rows: list[int], batch_size: int = 32) -> list[list[int]]:
        chosen, own = [prompts[i] for i in rows], [seeds[i] for i in rows]
        return generate_batch(model, chosen, 10, eos_id=None, sampling=DRAWN, seed=own, batch_size=batch_size)

    together = answers([0, 1, 2, 3, 4, 5])
    assert len(set(map(tuple, together))) == 6
    order = [4, 2, 5, 0, 3, 1]
    assert answers(order) == [together[i] for i in order]
    assert answers([0, 1, 2, 3, 4, 5], batch_size=2) == together
    for row in range(6):
        assert answers([row]) == [together[row]]


def test_a_single_seed_gives_row_r_the_seed_plus_r(model: GPT) -> None:
    ids = torch.tensor(random_prompts([4]))
    rows = generate(model, ids.expand(5, -1), 12, temperature=2.0, seed=30).tolist()
    assert rows == [generate(model, ids, 12, temperature=2.0, seed=30 + row).tolist()[0] for row in range(5)]
    assert len(set(map(tuple, rows))) == 5


def test_a_seed_draws_the_same_however_many_tokens_are_asked_for(model: GPT) -> None:
    ids = torch.zeros(1, 1, dtype=torch.long)
    short, long = (generate(model, ids, new, temperature=1.0, seed=1)[0].tolist() for new in (3, 90))
    assert long[:4] == short


def test_a_seed_repeats_and_another_differs(model: GPT) -> None:
    ids = torch.zeros(1, 1, dtype=torch.long)
    a, b, c = (generate(model, ids, 20, temperature=1.0, seed=s).tolist() for s in (1, 1, 2))
    assert a == b != c


def test_seeds_must_be_as_many_as_rows(model: GPT) -> None:
    with pytest.raises(UserError, match="1 seeds for 2 rows"):
        generate(model, torch.zeros(2, 1, dtype=torch.long), 4, temperature=1.0, seed=[3])


# -- stream ----------------------------------------------------------------------------------------------------------


def test_a_column_is_computed_when_it_is_asked_for(model: GPT) -> None:
    lengths: list[int] = []
    hook = model.transformer.register_forward_hook(lambda module, args, output: lengths.append(args[0].size(1)))
    try:
        columns = stream(model, random_prompts([3, 5]), 10)
        assert lengths == []
        first, second = next(columns), next(columns)
        assert lengths == [5, 1]  # the prompts, then a token a step
    finally:
        hook.remove()
    assert torch.stack([first, second], 1).tolist() == generate_batch(model, random_prompts([3, 5]), 2, eos_id=None)


# -- Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"repetition_penalty": 0}])
def test_wrong_options_are_refused(model: GPT, wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        generate(model, torch.zeros(1, 1, dtype=torch.long), 1, **wrong)


def test_empty_and_overlong_prompts_are_refused(model: GPT) -> None:
    with pytest.raises(UserError, match="empty"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), 1)
    with pytest.raises(UserError, match="prompt 1: 24 tokens"):
        generate_batch(model, [[1], [1] * 24], 4, eos_id=0)
    with pytest.raises(UserError, match="prompt 1: 0 tokens"):
        generate_batch(model, [[1], []], 4, eos_id=0, slide=True)
