"""Frozen blocks computed once: the same logits, gradients and training as the plain way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt2core.checkpoint.model_dir import save_model
from gpt2core.config.finetune_classify import FinetuneClassify
from gpt2core.inference.classify import Texts
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.params import load_params
from gpt2core.tasks.labeled_texts import Splits
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training import cached_features, classify
from gpt2core.training.cached_features import CachedFeatures
from gpt2core.training.classify import finetune_classify

CONFIG = GPTConfig(vocab_size=50, n_positions=40, n_embd=16, n_layer=3, n_head=2, initializer_range=0.3)
IDS = [list(range(n, 0, -1)) for n in (7, 1, 30, 4, 4, 12)]


@pytest.fixture(params=["last", "first", "mean"])
def model(request: pytest.FixtureRequest) -> GPTClassifier:
    torch.manual_seed(3)
    return GPTClassifier(CONFIG, ("a", "b", "c"), request.param).double()


@pytest.mark.parametrize("n_blocks", [0, 1, 2, 3])
def test_logits_and_gradients_are_those_of_the_plain_way(
    model: GPTClassifier, n_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_features, "_room", lambda n, n_embd: torch.empty(n, n_embd, dtype=torch.float64))
    rows, found = [4, 2, 0, 1], []
    for side in (Texts(model, IDS), CachedFeatures(model, IDS, n_blocks)):
        model.zero_grad()
        ids, lengths = side.batch(rows)
        logits = side.logits(ids, lengths)
        logits.logsumexp(-1).sum().backward()
        learning = [model.transformer.ln_f, *model.transformer.h[n_blocks:], model.score]
        grads = [p.grad.clone() for module in learning for p in module.parameters() if p.grad is not None]
        found.append((logits, grads))
    (plain, plain_grads), (ours, our_grads) = found
    torch.testing.assert_close(ours, plain)
    assert len(plain_grads) == len(our_grads) > 2
    for one, other in zip(our_grads, plain_grads, strict=True):
        torch.testing.assert_close(one, other)


def test_predictions_are_in_the_order_of_the_texts(model: GPTClassifier) -> None:
    model.float()
    plain, ours = Texts(model, IDS), CachedFeatures(model, IDS, 2)
    torch.testing.assert_close(ours.predict(), plain.predict(batch_size=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.predict([5, 0]), ours.predict()[[5, 0]])


def test_what_is_large_lies_in_a_file_and_is_the_same(model: GPTClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    model.float()
    in_memory = CachedFeatures(model, IDS, 2)
    monkeypatch.setattr(cached_features, "MAX_MEMORY_BYTES", 0)
    mapped = CachedFeatures(model, IDS, 2)
    assert torch.equal(mapped.hidden, in_memory.hidden)
    assert torch.equal(mapped.predict(), in_memory.predict())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    torch.manual_seed(0)
    tokenizer = train_bpe(["you won a lamp, meet me at the mill\n" * 9], 270)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=32, n_embd=32, n_layer=3, n_head=2, initializer_range=0.2))
    save_model(folder, model, tokenizer)
    return folder


EXAMPLES = [("spam" if i % 2 else "ham", f"{'you won' if i % 2 else 'meet me'} at the lamp {i}") for i in range(40)]


def params(**changes: object) -> FinetuneClassify:
    section = load_params(Path(__file__).parents[2] / "profiles/tiny.yaml").finetune_classify
    return section.model_copy(update={"epochs": 2, "batch_size": 4, "lr": 0.01, "warmup_steps": 0, **changes})


@pytest.mark.parametrize("trainable", ["head", "last_block", "last_two_blocks"])
def test_a_training_goes_as_the_plain_one_does(base: Path, trainable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> classify.Classified:
        splits = Splits(EXAMPLES[:28], EXAMPLES[28:34], EXAMPLES[34:])
        return finetune_classify(params(trainable=trainable), 1, base, ("ham", "spam"), splits)

    used: list[int] = []

    class Counted(CachedFeatures):
        def __init__(self, *args: object) -> None:
            used.append(args[2])  # type: ignore[arg-type]
            super().__init__(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(classify, "CachedFeatures", Counted)
    fast = run()
    assert used == [{"head": 3, "last_block": 2, "last_two_blocks": 1}[trainable]] * 3
    monkeypatch.setattr(classify, "CachedFeatures", lambda model, ids, n_blocks: Texts(model, ids))
    plain = run()
    assert fast.before == plain.before
    for one, other in zip(fast.curve, plain.curve, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(
        torch.tensor(fast.probabilities), torch.tensor(plain.probabilities), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    "changes",
    [{"trainable": "all"}, {"trainable": "last_block", "dropout": 0.1}, {"trainable": "head", "max_steps": 1}],
)
def test_blocks_that_learn_or_drop_or_read_little_are_not_kept(
    base: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify, "CachedFeatures", None)  # to call it is an error
    finetune_classify(params(**changes), 1, base, ("ham", "spam"), Splits(EXAMPLES[:28], EXAMPLES, EXAMPLES))
