"""A training that was stopped and resumed is to the bit the one that never was."""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTConfig
from gpt2core.signals import Terminated
from gpt2core.training import resume as resume_module
from gpt2core.training.batches import Batch, WindowSampler
from gpt2core.training.checkpoints import Checkpoint, CheckpointManager
from gpt2core.training.optimizers import adamw, muon_and_adamw
from gpt2core.training.resume import ResumableTraining, load_state, state_tensors
from gpt2core.training.schedules import new_schedule
from gpt2core.training.storage import LocalFolder
from gpt2core.training.task import Step, Task
from gpt2core.training.trainer import Recipe, fit

MAX_STEPS = 10
TOKENS = np.random.default_rng(0).integers(0, 60, 2000).astype(np.uint16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums this small are slower on several, and slowest where other work shares the cores."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


class Training(Task):
    """A small GPT with dropout; Muon and AdamW, or AdamW on a part of the weights."""

    def __init__(self, states: CheckpointManager | None, recipe: str = "muon"):
        torch.manual_seed(3)
        model = GPT(GPTConfig(vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.1))
        if recipe == "muon":
            self.optimizers = muon_and_adamw(model, muon_lr=0.02, lr=0.003, weight_decay=0.1, beta1=0.9, beta2=0.95)
        else:
            model.transformer.wte.requires_grad_(False)
            self.optimizers = [adamw(model.parameters(), lr=0.003, weight_decay=0.1, beta2=0.95)]
        super().__init__("pretrain", model, MAX_STEPS, seed=1)
        self.states = states
        self.sampler = WindowSampler(TOKENS, 16, 1, "x")
        self.resumed_at: int | None = None

    def batch(self, step: int) -> list[Batch]:
        return [self.sampler.windows_of([2 * step, 2 * step + 1])]

    def loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch.inputs[0])
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        return loss * math.nan if len(self._losses) + 1 == self.spoil else loss

    @property
    def losses(self) -> list[float]:
        return self._losses

    def is_evaluated(self, step: int) -> bool:
        return False

    def evaluate(self, step: int) -> dict[str, float]:
        raise NotImplementedError

    def on_step(self, done: Step) -> dict[str, float]:
        metrics = super().on_step(done)
        self.after_step(done)
        return metrics

    def on_metrics(self, metrics: dict[str, float], step: int) -> None:
        if not metrics:
            self.resumed_at = step

    def run(self, on_step: Callable[[Step], None] = lambda done: None, spoil: int | None = None) -> Training:
        self.after_step, self.spoil = on_step, spoil
        fit(self, Recipe(self.optimizers, new_schedule("cosine", 3, MAX_STEPS), 1.0), self.states, self.on_metrics)
        return self

    def weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(step: int) -> Callable[[Step], None]:
    def on_step(done: Step) -> None:
        if done.step == step:
            raise Killed

    return on_step


def signal_at(step: int, *numbers: int) -> Callable[[Step], None]:
    def on_step(done: Step) -> None:
        if done.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    return on_step


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointManager:
    """Where a state is saved after every step, or with `GPT2CORE_SAVE_INTERVAL_S` unset from time to time."""
    monkeypatch.setenv("GPT2CORE_SAVE_INTERVAL_S", "0")
    return CheckpointManager(LocalFolder(tmp_path / "training"))


def saved_steps(states: CheckpointManager) -> list[int]:
    return sorted(int(name.split(".")[0]) for name in states.folder.entries())


@pytest.mark.parametrize("recipe", ["muon", "a part"])
@pytest.mark.parametrize("step", range(1, MAX_STEPS + 1))
def test_killed_at_any_step_it_ends_the_same(states: CheckpointManager, step: int, recipe: str) -> None:
    never = Training(None, recipe).run()
    with pytest.raises(Killed):
        Training(states, recipe).run(on_step=kill_at(step))
    assert saved_steps(states)[-1:] == [step - 1][: step - 1]
    resumed = Training(states, recipe).run()
    assert (resumed.resumed_at or 0) == step - 1
    assert torch.equal(resumed.weights(), never.weights())
    assert resumed.losses == never.losses


def test_killed_many_times_it_ends_the_same(states: CheckpointManager, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 3, 3, 7, 7, 10):
        with pytest.raises(Killed):
            Training(states).run(on_step=kill_at(step))
    last = Training(states).run()
    assert torch.equal(last.weights(), Training(None).run().weights())
    said = capsys.readouterr().err.splitlines()
    steps = [re.match(r"pretrain: resumed at step (\d+) of 10 \(checkpoint of 20..-", line) for line in said]
    assert [int(match[1]) for match in steps if match] == [1, 2, 2, 6, 6, 9]


def test_the_last_state_is_the_model_alone(states: CheckpointManager) -> None:
    first = Training(states).run()
    state = states.newest()
    assert state is not None
    assert state.step == MAX_STEPS
    assert not [name for name in state.tensors if name.startswith("optimizer")]
    again = Training(states).run()
    assert again.resumed_at == MAX_STEPS
    assert torch.equal(first.weights(), again.weights())
    assert first.losses == again.losses


def test_frozen_weights_are_not_kept(states: CheckpointManager) -> None:
    training = Training(states, "a part")
    names = state_tensors(training.model, []).keys()
    assert {"model.transformer.wpe.weight", "random.cpu"} < names
    assert "model.transformer.wte.weight" not in names


def test_optimizers_and_generator_come_back(tmp_path: Path) -> None:
    """Against what PyTorch itself says of the optimizers' state."""
    first, second = Training(None).run(), Training(None)
    tensors = state_tensors(first.model, first.optimizers)
    drawn = torch.rand(3)
    load_state(Checkpoint(1, tensors, {}, 0.0), second.model, second.optimizers)
    assert torch.equal(torch.rand(3), drawn)
    for one, other in zip(first.optimizers, second.optimizers, strict=True):
        theirs, ours = one.state_dict()["state"], other.state_dict()["state"]
        assert theirs.keys() == ours.keys() != set()
        for index in theirs:
            assert theirs[index].keys() == ours[index].keys()
            assert all(torch.equal(theirs[index][name], ours[index][name]) for name in theirs[index])


def test_nothing_is_kept_without_a_place(states: CheckpointManager) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    training = Training(None).run(on_step=lambda _: check(signal.getsignal(signal.SIGINT) is handlers[0]))
    assert training.resumed_at is None


def check(holds: bool) -> None:
    assert holds


# -- When ------------------------------------------------------------------------------------------------------------


class Clock:
    """A step takes `step_s`, saving `save_s`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, states: CheckpointManager, step_s: float, save_s: float):
        self.now_s = 100.0
        self.step_s = step_s
        self.steps: list[int] = []

        def save(step: int, *_: Any) -> bool:
            self.now_s += save_s
            self.steps.append(step)
            return True

        monkeypatch.setattr(resume_module.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(states, "save", save)

    def run(self, resume: ResumableTraining, n_steps: int) -> list[int]:
        for step in range(1, n_steps + 1):
            self.now_s += self.step_s
            if resume.is_due(step):
                resume.on_pause(step)
        return self.steps


@pytest.mark.parametrize(
    ("step_s", "save_s", "steps"),
    [
        (7.0, 0.0, [9, 18, 27, 36, 45, 50]),  # a minute has passed
        (7.0, 0.5, [9, 18, 27, 36, 45, 50]),  # within a hundredth
        (10.0, 1.0, [6, 16, 26, 36, 46, 50]),  # saving takes a hundredth of a hundred seconds
        (70.0, 0.1, list(range(1, 51))),
        (0.1, 0.0, [50]),
    ],
)
def test_a_state_is_saved_each_minute_and_for_a_hundredth_of_the_time(
    states: CheckpointManager, monkeypatch: pytest.MonkeyPatch, step_s: float, save_s: float, steps: list[int]
) -> None:
    monkeypatch.delenv("GPT2CORE_SAVE_INTERVAL_S")
    clock = Clock(monkeypatch, states, step_s, save_s)
    model = torch.nn.Linear(2, 2)
    assert clock.run(ResumableTraining(states, model, [], 50, dict), 50) == steps


def test_the_interval_can_be_set(states: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_SAVE_INTERVAL_S", "15")
    clock = Clock(monkeypatch, states, step_s=10, save_s=5)
    assert clock.run(ResumableTraining(states, torch.nn.Linear(2, 2), [], 9, dict), 9) == [2, 4, 6, 8, 9]


@pytest.mark.parametrize("value", ["-1", "often", "nan", "inf", ""])
def test_an_interval_that_is_none_is_refused(
    states: CheckpointManager, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("GPT2CORE_SAVE_INTERVAL_S", value)
    with pytest.raises(UserError, match="GPT2CORE_SAVE_INTERVAL_S=.*: must be a number of seconds, 0 or more"):
        Training(states).run()


class WithBase(Training):
    """Evaluates the model before its first step, which takes long."""

    n_evaluations = 0

    def evaluate_base(self) -> bool:
        WithBase.n_evaluations += 1
        self.curve = [{"val_loss": 0.5}]
        return True


def test_the_evaluation_before_the_first_step_is_saved(states: CheckpointManager) -> None:
    with pytest.raises(Killed):
        WithBase(states).run(on_step=kill_at(1))
    again = WithBase(states).run()
    assert (WithBase.n_evaluations, again.resumed_at, again.curve) == (1, 0, [{"val_loss": 0.5}])
    assert torch.equal(again.weights(), Training(None).run().weights())


# -- Told to stop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "error"), [((signal.SIGINT,), KeyboardInterrupt), ((signal.SIGTERM,), Terminated),
                           ((signal.SIGTERM, signal.SIGTERM), Terminated)],
)  # fmt: skip
def test_a_signal_saves_first(
    states: CheckpointManager,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    numbers: tuple,
    error: type,
) -> None:
    monkeypatch.delenv("GPT2CORE_SAVE_INTERVAL_S")
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as ended:
        Training(states).run(on_step=signal_at(4, *numbers))
    assert ended.type is error
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert saved_steps(states) in ([4], [5])  # the signal may come after the question whether to pause
    (step,) = saved_steps(states)
    said = capfd.readouterr().err
    assert said.count("stopping: ") == 1
    assert f"pretrain: saved at step {step} of 10; run the same command to continue" in said
    assert torch.equal(Training(states).run().weights(), Training(None).run().weights())


def test_a_signal_after_the_last_pause_is_not_lost(
    states: CheckpointManager, capfd: pytest.CaptureFixture[str]
) -> None:
    resume = ResumableTraining(states, torch.nn.Linear(2, 2), [], 9, dict, "pretrain")
    with pytest.raises(Terminated), resume:
        os.kill(os.getpid(), signal.SIGTERM)
    assert "pretrain: saved at step 0 of 9; run the same command to continue" in capfd.readouterr().err
    with resume:
        pass  # it was reported once


def test_a_second_ctrl_c_ends_it_at_once(states: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2CORE_SAVE_INTERVAL_S")
    with pytest.raises(KeyboardInterrupt):
        Training(states).run(on_step=signal_at(4, signal.SIGINT, signal.SIGINT))
    assert saved_steps(states) == []


def test_a_loss_that_is_not_finite_is_the_same_each_time_and_no_state_has_it(states: CheckpointManager) -> None:
    messages = set()
    for _ in range(3):
        with pytest.raises(UserError) as error:
            Training(states).run(spoil=6)
        messages.add(str(error.value))
        assert saved_steps(states) == [4, 5]
    assert len(messages) == 1
    assert "step 6: the loss is nan" in messages.pop()
