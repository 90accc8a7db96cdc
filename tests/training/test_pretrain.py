"""Pretraining as a whole: what its switches must not change, and what a step must not do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2core.checkpoint.model_dir import load, save_model
from gpt2core.corpus.shards import Shard
from gpt2core.params import load_params
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training import trainer
from gpt2core.training.batches import Batch
from gpt2core.training.pretrain import Corpus, Pretrained, pretrain
from tests.training.function_task import train

TINY = load_params("profiles/tiny.yaml").pretrain.model_copy(
    update=dict(
        n_layer=2, n_head=2, n_embd=32, n_positions=64, context=32, batch_size=4, max_steps=4, warmup_steps=1,
        eval_interval_steps=4, eval_batches=1, sample_tokens=4,
    )
)  # fmt: skip
IDS = np.random.default_rng(0).integers(280, size=4000).astype(np.uint16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["what is learned from this text are merges of some letters"] * 5, 280)


def run(tokenizer: Tokenizer, **changes: Any) -> tuple[Pretrained, list[float]]:
    losses: list[float] = []
    tokens = IDS % tokenizer.vocab_size
    shard = Shard(tokens, tokenizer.vocab_size, 1, len(tokens))

    def follow(metrics: dict[str, float], step: int) -> None:
        if "train_loss" in metrics:
            losses.append(metrics["train_loss"])

    return pretrain(TINY.model_copy(update=changes), 1, [Corpus(shard, shard)], tokenizer, on_metrics=follow), losses


@pytest.mark.slow
def test_a_compiled_model_learns_alike_and_is_saved_under_its_own_names(tokenizer: Tokenizer, tmp_path: Any) -> None:
    plain, losses = run(tokenizer, compile=False)
    compiled, compiled_losses = run(tokenizer, compile=True)
    assert compiled_losses == pytest.approx(losses, rel=1e-4)
    save_model(tmp_path / "model", compiled.model, tokenizer)
    loaded, _ = load(tmp_path / "model")
    assert loaded.state_dict().keys() == plain.model.state_dict().keys()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bfloat16_and_recomputed_activations_learn_alike(tokenizer: Tokenizer, optimizer: str) -> None:
    _, losses = run(tokenizer, optimizer=optimizer)
    _, recomputed = run(tokenizer, optimizer=optimizer, activation_checkpointing=True)
    assert recomputed == losses
    model, in_bfloat16 = run(tokenizer, optimizer=optimizer, dtype="bfloat16")
    assert in_bfloat16 == pytest.approx(losses, rel=0.02)
    assert in_bfloat16 != losses
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_step_waits_for_the_device(tokenizer: Tokenizer, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two readings no operation runs that a GPU would have to finish its queue for."""
    monkeypatch.setattr(trainer, "read_every_steps", lambda device: 1000)
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    reading = trainer._read

    def read(unread: Any) -> Any:
        seen.append("read")
        return reading(unread)

    monkeypatch.setattr(trainer, "_read", read)
    with Watch():
        run(tokenizer, optimizer=optimizer, grad_accum_steps=2)
    in_steps = seen[: seen.index("read")]
    assert sum("embedding_dense_backward" in name for name in in_steps) >= 4 * 2  # all the steps are there
    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")
    assert not [name for name in in_steps if any(word in name for word in waiting)]


def test_batches_are_made_while_the_step_before_is_under_way() -> None:
    """The loss of a step waits for the batch of the next one; without a thread of its own that would never come."""
    import threading

    made = [threading.Event() for _ in range(4)]
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": model.parameters(), "initial_lr": 0.1}], lr=0.1)

    def batches(step: int) -> list[Batch]:
        made[step].set()
        return [Batch((torch.ones(1, 2) * step,), torch.tensor([1]))]

    def loss_sum(batch: Batch) -> torch.Tensor:
        step = int(batch.inputs[0][0, 0])
        assert step == 3 or made[step + 1].wait(timeout=30)
        return model(*batch.inputs).sum()

    train(model, [optimizer], lambda step: 1.0, batches, loss_sum, max_steps=4, grad_clip=1.0)
    assert all(event.is_set() for event in made)


def test_early_stopping_keeps_the_best_weights(tokenizer: Tokenizer) -> None:
    """The model's own validation loss is that of the best row; its sample is the last one."""
    result, _ = run(
        tokenizer, max_steps=40, eval_interval_steps=4, lr=0.5, optimizer="adamw", schedule="constant", patience_evals=2
    )
    losses = [row["val_loss"] for row in result.curve]
    best = losses.index(min(losses))
    assert result.kept_row == result.curve[best]
    assert len(losses) == min(10, best + 3)
    assert result.samples[-1]["tokens"] == result.kept_row["tokens"]
