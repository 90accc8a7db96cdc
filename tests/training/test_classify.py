"""Fine-tuning a classifier: early stopping, what the head reads, and more classes than two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gpt2core.checkpoint.model_dir import load, save_model
from gpt2core.inference.classify import Texts, encode
from gpt2core.model import GPT, GPTConfig
from gpt2core.params import load_params
from gpt2core.tasks.labeled_texts import Splits
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.classify import Classified, finetune_classify
from gpt2core.training.storage import LocalFolder

CLASSES = ("sport", "trade", "weather")
WORDS = {"sport": "goal", "trade": "price", "weather": "rain"}
EXAMPLES = [(label, f"the {WORDS[label]} of day {i}") for i in range(20) for label in CLASSES]
# What is learned of half of them is wrong of the others: the validation loss falls first, and then rises.
NOISY = [(CLASSES[(i * 7 + i // 3) % 3] if i % 2 else label, text) for i, (label, text) in enumerate(EXAMPLES)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    torch.manual_seed(0)
    tokenizer = train_bpe(["the goal of day 1, the price of rain\n" * 9], 270)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2))
    save_model(folder, model, tokenizer)
    return folder


def tuned(
    base: Path, states: CheckpointManager | None = None, on_metrics=lambda metrics, step: None, **changes
) -> Classified:
    section = load_params(Path(__file__).parents[2] / "profiles/tiny.yaml").finetune_classify
    recipe = {"epochs": 12, "batch_size": 6, "lr": 0.02, "warmup_steps": 0, "max_steps": None, "dropout": 0.1}
    section = section.model_copy(update={**recipe, **changes})
    return finetune_classify(
        section, 1, base, CLASSES, Splits(NOISY[:30], NOISY[30:45], EXAMPLES[45:]), on_metrics, states
    )  # fmt: skip


def val_loss(found: Classified) -> float:
    ids, _ = encode([text for _, text in NOISY[30:45]], found.tokenizer, 32, None)
    targets = torch.tensor([CLASSES.index(label) for label, _ in NOISY[30:45]])
    return F.cross_entropy(Texts(found.model, ids).predict(), targets).item()


def test_the_weights_of_the_best_epoch_are_kept_and_the_training_ends_when_patience_does(base: Path) -> None:
    found = tuned(base, patience_evals=3)
    losses = [row["val_loss"] for row in found.curve]
    assert found.kept_epoch == losses.index(min(losses)) + 1
    assert 1 < found.kept_epoch < len(losses) == found.kept_epoch + 3 < 12
    assert val_loss(found) == pytest.approx(min(losses), abs=1e-6)
    assert losses[-1] > min(losses) + 0.01
    ids, _ = encode([text for _, text in EXAMPLES[45:]], found.tokenizer, 32, None)
    torch.testing.assert_close(torch.tensor(found.probabilities), Texts(found.model, ids).predict().softmax(-1))

    patient = tuned(base, patience_evals=12)
    assert patient.curve[: len(losses)] == found.curve and len(patient.curve) == 12
    last = tuned(base, patience_evals=None)
    assert last.curve == patient.curve and last.kept_epoch == 12
    assert val_loss(last) == pytest.approx(last.curve[-1]["val_loss"], abs=1e-6)


class Killed(Exception):
    """Stands for the end of the process."""


def test_an_early_stopping_that_is_killed_goes_on_to_the_same_bytes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuned(base, patience_evals=2)
    monkeypatch.setenv("GPT2CORE_SAVE_INTERVAL_S", "0")  # a state after every step
    states = CheckpointManager(LocalFolder(tmp_path / "training"))
    end = 5 * len(whole.curve)
    best = 5 * whole.kept_epoch
    for kill_at in (3, best, best + 1, best + 7, end - 1, end):

        def on_metrics(metrics: dict[str, float], step: int, kill_at: int = kill_at) -> None:
            if "lr" in metrics and step == kill_at:
                raise Killed

        with pytest.raises(Killed):
            tuned(base, states, on_metrics, patience_evals=2)
    for _ in range(2):  # the second finds a training that is over
        found = tuned(base, states, patience_evals=2)
        assert (found.curve, found.kept_epoch, found.before) == (whole.curve, whole.kept_epoch, whole.before)
        assert found.probabilities == whole.probabilities
        for key, tensor in whole.model.state_dict().items():
            assert torch.equal(found.model.state_dict()[key], tensor), key
    newest = states.newest()
    assert newest is not None and newest.step == end


@pytest.mark.parametrize("trainable", ["last_block", "all"])
@pytest.mark.parametrize("position", ["last", "first", "mean"])
def test_what_the_head_reads_is_kept_with_the_model(base: Path, tmp_path: Path, position: str, trainable: str) -> None:
    found = tuned(base, position=position, trainable=trainable, epochs=1, dropout=0.0)
    save_model(tmp_path / "c", found.model, found.tokenizer)
    model, tokenizer = load(tmp_path / "c")
    assert (model.position, model.labels) == (position, CLASSES)
    ids, _ = encode([text for _, text in EXAMPLES[45:]], tokenizer, 32, None)
    torch.testing.assert_close(torch.tensor(found.probabilities), Texts(model, ids).predict().softmax(-1))
    alike = Texts(model, [tokenizer.encode(text) for text in ("the goal", "the price of rain")]).predict()
    assert torch.allclose(alike[0], alike[1]) == (position == "first")  # causal: it has seen "t" or "the" alone
