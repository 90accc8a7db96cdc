"""Halves of a batch, which two processes compute with `numerics: portable`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2core import numerics
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTConfig
from gpt2core.training import halves
from gpt2core.training.batches import IGNORE, Batch, MaskedBatch, next_token_batch
from gpt2core.training.optimizers import adamw
from tests.training.function_task import train

ROOT = Path(__file__).parents[2]
CONFIG = GPTConfig(vocab_size=50, n_positions=64, n_embd=16, n_layer=1, n_head=2)


def language_batch(n_rows: int) -> Batch:
    ids = torch.randint(50, (n_rows, 13))
    return Batch((ids[:, :-1],), ids[:, 1:])


def masked_batch(n_rows: int) -> Batch:
    """Rows of unequal lengths; the first of several has no target, the others have some."""
    ids = [torch.randint(50, (3 + 2 * row,)).tolist() for row in range(n_rows)]
    targets = [
        [IGNORE if place % 3 or (row == 0 and n_rows > 1) else token for place, token in enumerate(tokens)]
        for row, tokens in enumerate(ids)
    ]
    return next_token_batch(zip(ids, targets, strict=True), pad_id=0)


def loss_sum(model: GPT, batch: Batch) -> Tensor:
    ids, *places = batch.inputs
    return model.loss(ids, batch.targets, *places, reduction="sum")


def loss_and_gradients(batches: Sequence[Batch]) -> tuple[float, list[Tensor]]:
    torch.manual_seed(1)
    model = GPT(CONFIG)
    losses = []
    for batch in batches:
        loss = loss_sum(model, batch)
        loss.backward()
        losses.append(loss.item())
    return sum(losses), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("n_rows", [2, 5, 8])
@pytest.mark.parametrize("make", [language_batch, masked_batch])
def test_halves_add_up_to_the_batch(make: Callable[[int], Batch], n_rows: int) -> None:
    batch = make(n_rows)
    parts = batch.halves()
    assert [len(half.inputs[0]) for half in parts] == [n_rows // 2, n_rows - n_rows // 2]
    assert {type(half) for half in parts} == {type(batch)}
    assert sum(half.n_targets for half in parts) == batch.n_targets
    assert torch.equal(torch.cat([half.inputs[0] for half in parts]), batch.inputs[0])
    assert torch.equal(torch.cat([half.targets for half in parts]), batch.targets)
    loss, gradients = loss_and_gradients([batch])
    halved_loss, halved_gradients = loss_and_gradients(parts)
    assert halved_loss == pytest.approx(loss, rel=1e-5)
    for gradient, halved in zip(gradients, halved_gradients, strict=True):
        torch.testing.assert_close(halved, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [language_batch, masked_batch])
def test_one_row_has_no_halves(make: Callable[[int], Batch]) -> None:
    batch = make(1)
    (half,) = batch.halves()
    assert half is batch


def test_places_of_a_masked_half_are_its_own() -> None:
    ids = torch.arange(12).view(4, 3)
    batch = MaskedBatch((ids, torch.tensor([1, 5, 6, 8, 11])), torch.tensor([10, 20, 30, 40, 50]))
    first, second = batch.halves()
    assert (first.inputs[1].tolist(), first.targets.tolist()) == ([1, 5], [10, 20])
    assert (second.inputs[1].tolist(), second.targets.tolist()) == ([0, 2, 5], [30, 40, 50])


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each batch that the second process computed, as if this process were portable."""
    rows: list[int] = []
    real = halves.SecondProcess.add_gradients

    def add_gradients(self: halves.SecondProcess, batch: Batch, n_targets: int) -> Tensor:
        def sent(data: bytes) -> None:
            half, _ = pickle.loads(data)
            rows.append(len(half.inputs[0]))
            send(data)

        send = self._pipe.send_bytes
        with monkeypatch.context() as patch:
            patch.setattr(self._pipe, "send_bytes", sent, raising=False)
            return real(self, batch, n_targets)

    monkeypatch.setattr(halves.SecondProcess, "add_gradients", add_gradients)
    monkeypatch.setattr(numerics, "is_portable", lambda: True)
    monkeypatch.setattr(numerics, "one_thread", contextlib.nullcontext)
    monkeypatch.setenv("GPT2CORE_PROCESSES", "2")
    return rows


def train_one_step(n_rows: int, loss: Callable[[GPT, Batch], Tensor] = loss_sum, **dropout: float) -> None:
    torch.manual_seed(2)
    model = GPT(GPTConfig(**{**CONFIG.__dict__, **dropout}))
    optimizer = adamw(model.parameters(), lr=1e-3, weight_decay=0.0, beta2=0.95)
    ids = torch.randint(50, (n_rows, 65))
    batches = [Batch((ids[:, :-1],), ids[:, 1:])] * 2
    train(
        model, [optimizer], lambda step: 1.0, lambda step: batches, lambda batch: loss(model, batch),
        max_steps=1, grad_clip=0,
    )  # fmt: skip


def test_two_processes_share_each_micro_batch(shared: list[int]) -> None:
    train_one_step(n_rows=17)
    assert shared == [9, 9]
    assert not multiprocessing.active_children()


def test_a_small_batch_is_not_shared(shared: list[int]) -> None:
    train_one_step(n_rows=halves.MIN_ELEMENTS // 64 - 1)
    assert shared == []


@pytest.mark.parametrize("dropout", ["attn_pdrop", "resid_pdrop", "embd_pdrop"])
def test_random_numbers_are_not_shared(shared: list[int], dropout: str) -> None:
    """Two processes would draw the same ones for both halves."""
    train_one_step(n_rows=17, **{dropout: 0.1})
    assert shared == []


@pytest.mark.parametrize("n_micro_batches", [1, 3])
def test_halved_steps_are_those_of_whole_batches(
    shared: list[int], monkeypatch: pytest.MonkeyPatch, n_micro_batches: int
) -> None:
    def trained(is_portable: bool) -> tuple[list[float], dict[str, Any]]:
        torch.manual_seed(3)
        monkeypatch.setattr(numerics, "is_portable", lambda: is_portable)
        model = GPT(CONFIG)
        optimizer = adamw(model.parameters(), lr=1e-3, weight_decay=0.1, beta2=0.95)

        def batches(step: int) -> list[Batch]:
            ids = torch.randint(50, (n_micro_batches * 16, 65), generator=torch.Generator().manual_seed(step))
            return [Batch((rows[:, :-1],), rows[:, 1:]) for rows in ids.split(16)]

        losses: list[float] = []
        train(
            model, [optimizer], lambda step: 1.0, batches, lambda batch: loss_sum(model, batch),
            max_steps=3, grad_clip=1.0, on_step=lambda step: losses.append(step.loss),
        )  # fmt: skip
        return losses, model.state_dict()

    losses, weights = trained(False)
    assert shared == []
    halved_losses, halved_weights = trained(True)
    assert len(shared) == 3 * n_micro_batches
    assert halved_losses == pytest.approx(losses, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(halved_weights[name], weight, rtol=1e-3, atol=1e-4)


def in_second_process(action: Callable[[], None]) -> Callable[[GPT, Batch], Tensor]:
    """A loss that does something before, but only in the second process."""
    first = os.getpid()

    def loss(model: GPT, batch: Batch) -> Tensor:
        if os.getpid() != first:
            action()
        return loss_sum(model, batch)

    return loss


def test_a_mistake_in_the_second_process_is_reported(shared: list[int]) -> None:
    def fail() -> None:
        raise ValueError("row 12 has no target")

    with pytest.raises(ValueError, match="row 12"):
        train_one_step(17, in_second_process(fail))
    assert not multiprocessing.active_children()


def test_a_killed_second_process_is_reported(shared: list[int]) -> None:
    with pytest.raises(UserError, match="-9.*memory"):
        train_one_step(17, in_second_process(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert not multiprocessing.active_children()


class Unpicklable(Exception):
    def __init__(self, row: int, lock: object) -> None:
        super().__init__(f"row {row}")
        self.lock = lock


def test_an_error_that_cannot_be_sent_keeps_its_message(shared: list[int]) -> None:
    def fail() -> None:
        raise Unpicklable(12, threading.Lock())

    with pytest.raises(RuntimeError, match="Unpicklable: row 12") as caught:
        train_one_step(17, in_second_process(fail))
    assert "line" in caught.value.__notes__[0]


def test_ctrl_c_reaches_the_first_process_alone(shared: list[int]) -> None:
    train_one_step(17, in_second_process(lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert shared == [9, 9]


ENDLESS = """
import contextlib, os, sys, time, torch
from torch import nn
from gpt2core import numerics
from gpt2core.training.batches import Batch
from gpt2core.training.halves import SecondProcess

numerics.one_thread = contextlib.nullcontext
first, weight = os.getpid(), nn.Parameter(torch.ones(300))

def backward(batch, n_targets):
    if os.getpid() != first:
        print(os.getpid(), flush=True)
    time.sleep(600)

ids = torch.ones(300, 1)
SecondProcess([weight], backward).add_gradients(Batch((ids,), ids), 1)
"""


def test_the_second_process_ends_with_the_first() -> None:
    """Even in the middle of a step, so that a run that was killed can start again at once."""
    first = subprocess.Popen(
        [sys.executable, "-c", ENDLESS],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None
    second = int(first.stdout.readline())
    os.kill(second, 0)
    first.kill()
    rest, _ = first.communicate(timeout=30)  # it returns when nobody is left who could write there
    assert rest == ""


UNCLOSED = """
import contextlib, torch
from torch import nn
from gpt2core import numerics
from gpt2core.training.halves import SecondProcess

numerics.one_thread = contextlib.nullcontext
second = SecondProcess([nn.Parameter(torch.ones(300))], lambda batch, n_targets: torch.ones(()))
print(second._process.pid)
"""


def test_a_process_that_was_not_closed_ends_at_exit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNCLOSED],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


TWICE = """
from gpt2core import numerics
numerics.prepare("portable")
numerics.start("portable")
import os, torch
os.environ["GPT2CORE_PROCESSES"] = "2"
from gpt2core.model import GPT, GPTConfig
from gpt2core.training import halves
from gpt2core.training.batches import Batch
from tests.training.function_task import train
from gpt2core.training.optimizers import muon_and_adamw

rows = set()

def trained():
    torch.manual_seed(4)
    model = GPT(GPTConfig(vocab_size=300, n_positions=128, n_embd=32, n_layer=2, n_head=2))
    optimizers = muon_and_adamw(model, muon_lr=0.02, lr=0.006, weight_decay=0.1, beta1=0.9, beta2=0.95)
    losses = []

    def batches(step):
        ids = torch.randint(300, (18, 129), generator=torch.Generator().manual_seed(step))
        return [Batch((rows[:, :-1],), rows[:, 1:]) for rows in ids.split(9)]

    def loss_sum(batch):
        rows.add(len(batch.targets))
        return model.loss(*batch.tensors, reduction="sum")

    train(model, optimizers, lambda step: 1.0, batches, loss_sum, max_steps=4, grad_clip=1.0,
          on_step=lambda step: losses.append((step.loss, step.grad_norm)))
    return losses, model.state_dict()

(losses, weights), (again, same) = trained(), trained()
assert losses == again, (losses, again)
assert all(torch.equal(weights[name], same[name]) for name in weights)
print(*rows)
os.environ["GPT2CORE_PROCESSES"] = "1"
one_after_the_other, same = trained()
assert one_after_the_other == losses
assert all(torch.equal(weights[name], same[name]) for name in weights)
assert rows == {4, 5}, rows
halves.MIN_ELEMENTS = 10**9
whole, _ = trained()
assert all(abs(a - b) < 1e-4 * b for (a, _), (b, _) in zip(losses, whole)), (losses, whole)
"""


def test_two_processes_repeat_the_same_bytes() -> None:
    result = subprocess.run(
        [sys.executable, "-c", TWICE],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == "4"


ACCELERATED = """
import torch
from torch.utils import backend_registration
backend_registration._setup_privateuseone_for_python_backend("npy")
assert torch.accelerator.is_available()
from gpt2core.training.halves import Halves, halves
print(type(halves([], lambda batch, n_targets: torch.ones(()))) is Halves)
"""


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch (2.9) has no device that is written in Python",
)
def test_a_process_with_an_accelerator_does_not_fork() -> None:
    """PyTorch refuses a backward pass in a fork of a process that has an accelerator and has done a backward pass."""
    result = subprocess.run(
        [sys.executable, "-c", ACCELERATED],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "GPT2CORE_PROCESSES": "2"}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert result.stdout.strip() == "True", result.stderr[-2000:]
