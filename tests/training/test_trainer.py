from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt2core.errors import UserError
from gpt2core.inference.classify import Texts
from gpt2core.model import GPT, GPTConfig
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training import trainer
from gpt2core.training.batches import IGNORE, Batch, WindowSampler, epoch_order, next_token_batch
from gpt2core.training.classify import new_classifier
from gpt2core.training.instruct import make_example, mean_loss
from gpt2core.training.optimizers import adamw, muon_and_adamw
from gpt2core.training.schedules import new_schedule
from gpt2core.training.task import Step
from tests.training.function_task import train

CONFIG = GPTConfig(vocab_size=300, n_positions=64, n_embd=16, n_layer=2, n_head=2)


def test_schedule_is_pytorchs() -> None:
    """Linear warm-up and cosine by PyTorch's own schedulers, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    theirs = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, 1, total_iters=4),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.001),
        ],
        milestones=[5],
    )
    ours = new_schedule("cosine", warmup_steps=5, max_steps=25, min_ratio=0.1)
    for step in range(25):
        assert 0.01 * ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        theirs.step()
    assert ours(25) == ours(1000) == pytest.approx(0.1)


def test_only_matrices_decay_and_frozen_weights_stay_out() -> None:
    model = GPT(CONFIG)
    model.transformer.wpe.requires_grad_(False)
    decayed, plain = adamw(model.parameters(), lr=1e-3, weight_decay=0.1, beta2=0.99).param_groups
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    count = sum(p.numel() for p in model.parameters()) - 64 * 16
    assert sum(p.numel() for group in (decayed, plain) for p in group["params"]) == count


def linear_problem() -> tuple[nn.Linear, list[Batch]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    generator = torch.Generator().manual_seed(1)
    rows = [
        Batch(
            (torch.randn(n, 4, generator=generator),),
            torch.tensor(([2, 0, 1] * n)[:n]),
        )
        for n in (3, 8, 5)
    ]
    return model, rows


def loss_sum_of(model: nn.Module):
    return lambda batch: F.cross_entropy(model(*batch.inputs), batch.targets, reduction="sum")


def test_the_loop_is_a_plain_pytorch_loop() -> None:
    model, (batch, *_) = linear_problem()
    steps: list[Step] = []
    optimizer = adamw(model.parameters(), lr=0.05, weight_decay=0.1, beta2=0.95)
    schedule = new_schedule("cosine", 2, 6)
    train(model, [optimizer], schedule, lambda step: [batch], loss_sum_of(model), max_steps=6, grad_clip=0.3,
          on_step=steps.append)  # fmt: skip

    reference, _ = linear_problem()
    plain = torch.optim.AdamW(
        [{"params": [reference.weight], "weight_decay": 0.1}, {"params": [reference.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    for step in range(6):
        for group in plain.param_groups:
            group["lr"] = 0.05 * schedule(step)
        loss = F.cross_entropy(reference(*batch.inputs), batch.targets)
        plain.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.3)
        plain.step()
        assert steps[step].loss == pytest.approx(loss.item(), rel=1e-5)
        assert steps[step].grad_norm == pytest.approx(norm.item(), rel=1e-5)
        assert steps[step].lr == 0.05 * schedule(step)
    torch.testing.assert_close(model.weight, reference.weight)


def test_micro_batches_of_unequal_targets_are_one_batch() -> None:
    model, batches = linear_problem()
    whole = Batch((torch.cat([b.inputs[0] for b in batches]),), torch.cat([b.targets for b in batches]))
    results = []
    for micro in (batches, [whole]):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        done: list[Step] = []
        optimizer = adamw(model.parameters(), lr=0.1, weight_decay=0.0, beta2=0.95)
        train(model, [optimizer], lambda step: 1.0, lambda step, m=micro: m, loss_sum_of(model), max_steps=3,
              grad_clip=1.0, on_step=done.append)  # fmt: skip
        results.append((model.weight.detach(), done))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert [s.loss for s in results[0][1]] == pytest.approx([s.loss for s in results[1][1]])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_nothing_follows_it(bad: float) -> None:
    model, (batch, *_) = linear_problem()
    optimizer = adamw(model.parameters(), lr=0.1, weight_decay=0.0, beta2=0.95)
    told: list[tuple[str, int]] = []
    plain = loss_sum_of(model)

    def loss_sum(batch: Batch) -> torch.Tensor:
        return plain(batch) * (bad if ("step", 2) in told else 1)

    with pytest.raises(UserError, match=r"step 3: the loss is (nan|inf) \(learning rate 0.1\)"):
        train(
            model, [optimizer], lambda step: 1.0, lambda step: [batch], loss_sum, max_steps=5, grad_clip=1.0,
            on_step=lambda done: told.append(("step", done.step)),
            is_evaluated=lambda step: True, evaluate=lambda step: told.append(("pause", step)),
        )  # fmt: skip
    assert told == [("step", 1), ("pause", 1), ("step", 2), ("pause", 2)]


def test_figures_read_late_come_in_order_and_before_each_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: the figures of several steps at once, but none missing when there is a pause."""
    monkeypatch.setattr(trainer, "read_every_steps", lambda device: 4)
    model, (batch, *_) = linear_problem()
    optimizer = adamw(model.parameters(), lr=0.1, weight_decay=0.0, beta2=0.95)
    told: list[str] = []

    def is_pause(step: int) -> bool:
        told.append("?")
        return step == 6

    train(
        model, [optimizer], lambda step: 1.0, lambda step: [batch], loss_sum_of(model), max_steps=9, grad_clip=1.0,
        on_step=lambda done: told.append(f"{done.step}"),
        is_evaluated=is_pause, evaluate=lambda step: told.append(f"pause {step}"),
    )  # fmt: skip
    assert told == ["?", "?", "?", "?", "1", "2", "3", "4", "?", "?", "5", "6", "pause 6", "?", "?", "?", "7", "8", "9"]


@pytest.mark.parametrize(
    ("val_losses", "patience_evals", "n_steps", "kept_step"),
    [
        ([5, 4, 3, 4, 5, 6], 2, 5, 3),
        ([5, 4, 4, 4, 1, 1], 2, 4, 2),  # of equal losses, the first one's weights are kept
        ([5, 4, 3, 2, 1, 0], 2, 6, 6),
        ([5, 6, 4, 5, 3, 4], 2, 6, 5),
        ([5, 6, 7, 8, 9, 9], 1, 2, 1),
        ([5, 4, 3, 4, 5, 6], None, 6, 6),
    ],
)
def test_the_best_weights_are_kept_and_patience_ends(
    val_losses: list[float], patience_evals: int | None, n_steps: int, kept_step: int
) -> None:
    model, (batch, *_) = linear_problem()
    optimizer = adamw(model.parameters(), lr=0.1, weight_decay=0.0, beta2=0.95)
    weights: list[torch.Tensor] = []

    def evaluate(step: int) -> dict[str, float]:
        weights.append(model.weight.detach().clone())
        return {"val_loss": val_losses[step - 1]}

    returned = train(
        model, [optimizer], lambda step: 1.0, lambda step: [batch], loss_sum_of(model), max_steps=6,
        patience_evals=patience_evals, is_evaluated=lambda step: True, evaluate=evaluate,
    )  # fmt: skip
    assert (len(weights), returned) == (n_steps, kept_step)
    assert torch.equal(model.weight, weights[kept_step - 1])


def test_a_mistake_in_the_batches_is_told() -> None:
    """They are made in another thread; what is wrong there must not be lost."""
    model, (batch, *_) = linear_problem()
    optimizer = adamw(model.parameters(), lr=0.1, weight_decay=0.0, beta2=0.95)

    def batches(step: int) -> list[Batch]:
        if step == 2:
            raise UserError("row 7 is empty")
        return [batch]

    with pytest.raises(UserError, match="row 7 is empty"):
        train(model, [optimizer], lambda step: 1.0, batches, loss_sum_of(model), max_steps=5, grad_clip=1.0)


def test_linear_and_wsd_are_pytorchs() -> None:
    """PyTorch's LinearLR for both, the second after a plateau; step by step."""
    for kind, plateau in (("linear", 0), ("wsd", 10)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.1, total_iters=20 - plateau)
        flat = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, 1, total_iters=4)
        schedulers, milestones = ([warmup, flat, decay], [5, 15]) if plateau else ([warmup, decay], [5])
        theirs = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, milestones=milestones)
        ours = new_schedule(kind, warmup_steps=5, max_steps=25, min_ratio=0.1, decay_fraction=0.4)
        for step in range(25):
            assert 0.01 * ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), (kind, step)
            optimizer.step()
            theirs.step()
        assert ours(25) == ours(1000) == pytest.approx(0.1)


def test_constant_stays_at_the_peak_after_the_warmup() -> None:
    schedule = new_schedule("constant", warmup_steps=4, max_steps=9, min_ratio=0.1, decay_fraction=0.5)
    assert [schedule(step) for step in range(9)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]


def test_an_epoch_sees_each_window_once_and_next_tokens_are_targets() -> None:
    sampler = WindowSampler(np.arange(1000, dtype=np.uint16), context=10, seed=3, where="x")
    seen = []
    for index in range(sampler.windows):  # 4 epochs in batches of 4
        batch = sampler.windows_of(range(4 * index, 4 * index + 4))
        assert torch.equal(batch.targets, batch.inputs[0] + 1)
        seen += batch.inputs[0][:, 0].tolist()
    for epoch in range(4):
        starts = sorted(seen[epoch * sampler.windows : (epoch + 1) * sampler.windows])
        assert np.diff(starts).tolist() == [10] * (sampler.windows - 1)


def test_batches_depend_on_seed_and_number_alone() -> None:
    tokens = np.arange(500, dtype=np.uint16)
    a, b, c = (WindowSampler(tokens, 10, seed, "x") for seed in (1, 1, 2))
    b.windows_of([0])
    numbers = range(120, 124)
    assert torch.equal(a.windows_of(numbers).targets, b.windows_of(numbers).targets)
    assert not torch.equal(a.windows_of(numbers).targets, c.windows_of(numbers).targets)
    assert WindowSampler(tokens[:11], 10, 1, "x").windows_of(range(20, 24)).targets.shape == (4, 10)


def test_a_corpus_shorter_than_a_context_is_refused() -> None:
    with pytest.raises(UserError, match="training split: 10 tokens are fewer than one context of 10"):
        WindowSampler(np.arange(10), 10, 1, "training split")


def test_epoch_order_is_a_permutation_with_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 500).tolist()
    batches = epoch_order(lengths, 8, seed=1, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    assert {len(batch) for batch in batches} <= {8, 500 % 128 % 8}
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)
    assert batches != epoch_order(lengths, 8, seed=1, epoch=1)


@pytest.mark.parametrize(("trainable", "blocks"), [("head", 0), ("last_block", 1), ("last_two_blocks", 2), ("all", 2)])
def test_only_the_named_part_learns(trainable: str, blocks: int) -> None:
    torch.manual_seed(0)
    model = new_classifier(GPT(CONFIG), ("a", "b"), trainable, seed=1)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"score.weight", "transformer.ln_f.weight"} <= names
    assert sum(f"transformer.h.{i}.ln_1.weight" in names for i in range(2)) == blocks
    assert ("transformer.wte.weight" in names) == (trainable == "all")


def test_predictions_do_not_depend_on_the_batches() -> None:
    model = new_classifier(GPT(CONFIG), ("a", "b"), "all", seed=1).double()
    ids = [list(range(n)) for n in (9, 1, 30, 4, 4)]
    alone = torch.cat([Texts(model, [row]).predict() for row in ids])
    torch.testing.assert_close(Texts(model, ids).predict(batch_size=3), alone)


ENTRY = {"instruction": "Name a fox.", "input": "", "output": "Reynard"}


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_an_example_predicts_the_response_and_the_end(mask_prompt: bool) -> None:
    tokenizer = train_bpe(["instruction response Name a fox Reynard request completes"] * 2, 280)
    example = make_example(ENTRY, tokenizer, 1024, mask_prompt)
    target_positions = [t for t in example.targets if t != IGNORE]
    response = [*tokenizer.encode("Reynard"), tokenizer.eot_id]
    assert target_positions[-len(response) :] == response
    assert (target_positions == response) == mask_prompt
    assert len(example.ids) == len(example.targets)
    full = [*example.ids, tokenizer.eot_id]
    assert all(t in (IGNORE, full[i + 1]) for i, t in enumerate(example.targets))
    with pytest.raises(UserError, match="'Name a fox.' has a prompt of"):
        make_example(ENTRY, tokenizer, 20, mask_prompt)


def test_mean_loss_is_the_mean_over_tokens_whatever_the_batches() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    from gpt2core.training.instruct import Example

    examples = [Example(list(range(n)), [IGNORE] * 2 + list(range(n - 2))) for n in (5, 9, 30)]
    total = sum(
        F.cross_entropy(model(torch.tensor([e.ids]))[0, 2:], torch.tensor(e.targets[2:]), reduction="sum").item()
        for e in examples
    )
    assert mean_loss(model, examples, 0, batch_size=2) == pytest.approx(total / (3 + 7 + 28), rel=1e-5)
    batch = next_token_batch(examples, 0)
    assert batch.n_targets == 38


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = GPT(CONFIG)
    muon, rest = muon_and_adamw(model, muon_lr=0.02, lr=0.001, weight_decay=0.1, beta1=0.9, beta2=0.95)
    in_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    in_rest = {id(p) for group in rest.param_groups for p in group["params"]}
    assert not in_muon & in_rest
    assert in_muon | in_rest == {id(p) for p in model.parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in in_muon}
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert names == {f"transformer.h.{i}.{kind}.weight" for i in range(2) for kind in kinds}
    assert [optimizer.param_groups[0]["initial_lr"] for optimizer in (muon, rest)] == [0.02, 0.001]


def test_a_muon_update_is_nearly_orthogonal() -> None:
    """Its singular values are near 1 (times the learning rate), whatever the gradient's were, but for the smallest."""
    model = GPT(CONFIG)
    weight = model.transformer.h[0].mlp.c_fc.weight
    before = weight.detach().clone()
    optimizers = muon_and_adamw(model, muon_lr=1.0, lr=0.001, weight_decay=0.0, beta1=0.9, beta2=0.95)
    ids = torch.randint(300, (4, 32), generator=torch.Generator().manual_seed(0))
    batch = Batch((ids[:, :-1],), ids[:, 1:])

    def loss_sum(batch: Batch) -> torch.Tensor:
        return F.cross_entropy(model(*batch.inputs).flatten(0, 1), batch.targets.flatten(), reduction="sum")

    train(model, optimizers, lambda step: 1.0, lambda step: [batch], loss_sum, max_steps=1, grad_clip=0.0)
    update = (weight.detach() - before) / math.sqrt(max(1, 64 / 16))  # torch scales tall matrices by this
    singular = torch.linalg.svdvals(update)
    assert 0.6 < singular.median() <= singular.max() < 1.3
