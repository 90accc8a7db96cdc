"""Pretraining that starts with the weights of a model, compared with transformers' own training of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2core.checkpoint.model_dir import load_language_model
from gpt2core.corpus.shards import Shard
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTConfig
from gpt2core.model.grow import grow
from gpt2core.params import load_params
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import extend_char, train_char
from gpt2core.training.batches import WindowSampler
from gpt2core.training.pretrain import Corpus, Pretrained, pretrain
from tests.small import config_and_tokenizer, save_small_model

PARAMS = load_params("profiles/tiny.yaml").pretrain.model_copy(
    update=dict(
        base="own/small", n_layer=None, n_head=None, n_embd=None, context=32, batch_size=4, max_steps=8, warmup_steps=0,
        schedule="constant", optimizer="adamw", lr=1e-3, eval_interval_steps=4, eval_batches=1, sample_tokens=4,
    )
)  # fmt: skip
SEED = 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "small")


def corpus(vocab_size: int, seed: int = 0) -> Corpus:
    """Ids in runs, so that there is something to learn."""
    starts = np.random.default_rng(seed).integers(vocab_size, size=(400, 1))
    ids = ((starts + np.arange(10)) % vocab_size).astype(np.uint16).ravel()
    shard = Shard(ids, vocab_size, 1, len(ids))
    return Corpus(shard, shard)


def train(
    corpora: list[Corpus], tokenizer: Tokenizer, base: GPT | None, **changes: Any
) -> tuple[Pretrained, dict[int, float]]:
    losses: dict[int, float] = {}

    def follow(metrics: dict[str, float], step: int) -> None:
        if "train_loss" in metrics:
            losses[step] = metrics["train_loss"]

    return pretrain(PARAMS.model_copy(update=changes), SEED, corpora, tokenizer, follow, base), losses


def test_the_losses_are_those_of_transformers_trainer(folder: Path, tmp_path: Path) -> None:
    """The same weights, windows, and settings: AdamW with decay of matrices, gradients clipped to norm 1."""
    transformers = pytest.importorskip("transformers")
    base, tokenizer = load_language_model(folder)
    data = corpus(base.config.vocab_size)
    _, ours = train([data], tokenizer, base)

    sampler = WindowSampler(data.train.tokens, PARAMS.context, SEED, "")
    windows = [sampler.windows_of([number]) for number in range(PARAMS.max_steps * PARAMS.batch_size)]
    rows = [{"ids": torch.cat([batch.inputs[0][0], batch.targets[0][-1:]])} for batch in windows]
    theirs: list[float] = []

    class InOrder(transformers.Trainer):  # type: ignore[name-defined, misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
            ids = inputs["ids"]
            logits = model(ids[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            theirs.append(loss.item())
            return loss

    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=PARAMS.max_steps, per_device_train_batch_size=PARAMS.batch_size, report_to=[],
        learning_rate=PARAMS.lr, lr_scheduler_type="constant", weight_decay=PARAMS.weight_decay,
        adam_beta1=PARAMS.beta1, adam_beta2=PARAMS.beta2, max_grad_norm=PARAMS.grad_clip, save_strategy="no",
        remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    InOrder(model, arguments, train_dataset=rows).train()
    assert list(ours.values()) == pytest.approx(theirs, rel=1e-4)
    assert theirs[-1] < theirs[0]


def test_the_loss_before_is_that_of_the_base(folder: Path) -> None:
    base, tokenizer = load_language_model(folder)
    data = corpus(base.config.vocab_size)
    batch = WindowSampler(data.val.tokens, PARAMS.context, SEED, "").windows_of(range(PARAMS.batch_size))
    logits = base(*batch.inputs)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).item()
    result, _ = train([data], tokenizer, base)
    assert result.start_val_loss == pytest.approx(expected, rel=1e-5)
    assert result.kept_row["val_loss"] < expected
    assert train([data], tokenizer, None)[0].start_val_loss is None


def test_a_second_corpus_has_a_schedule_of_its_own_and_counts_on(folder: Path) -> None:
    base, tokenizer = load_language_model(folder)
    first, second = corpus(base.config.vocab_size), corpus(base.config.vocab_size, seed=1)
    rates: dict[int, float] = {}

    def follow(metrics: dict[str, float], step: int) -> None:
        if "lr" in metrics:
            rates[step] = metrics["lr"]

    changes = dict(continued_steps=4, continued_lr_ratio=0.5, schedule="linear")
    result = pretrain(PARAMS.model_copy(update=changes), SEED, [first, second], tokenizer, follow, base)
    expected = [1e-3 * (8 - step) / 8 for step in range(8)] + [5e-4 * (4 - step) / 4 for step in range(4)]
    assert rates == pytest.approx(dict(enumerate(expected, start=1)))
    assert [row["step"] for row in result.curve] == [4, 8, 12]
    assert [row["tokens"] for row in result.curve] == [4 * 128, 8 * 128, 12 * 128]
    assert result.kept_step == 12
    assert result.start_val_loss == pytest.approx(_window_loss(_after_first(folder, first), second), rel=1e-4)


def _after_first(folder: Path, first: Corpus) -> GPT:
    base, tokenizer = load_language_model(folder)
    return train([first], tokenizer, base, schedule="linear")[0].model


def _window_loss(model: GPT, data: Corpus) -> float:
    batch = WindowSampler(data.val.tokens, PARAMS.context, SEED, "").windows_of(range(PARAMS.batch_size))
    with torch.no_grad():
        return model.loss(*batch.inputs, batch.targets).item()


def test_a_base_with_too_few_positions_is_refused_or_grows(folder: Path) -> None:
    base, tokenizer = load_language_model(folder)
    data = corpus(base.config.vocab_size)
    with pytest.raises(UserError, match=r"context: 400 .* 320 positions .*own/small.*n_positions, which adds"):
        train([data], tokenizer, base, context=400)
    result, _ = train([data], tokenizer, base, context=400, n_positions=512, max_steps=1, eval_interval_steps=1)
    assert result.model.config.n_positions == 512


@pytest.mark.parametrize("tie", [True, False])
def test_a_grown_model_computes_what_it_did(tie: bool) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(50, n_positions=8, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=tie)).eval()
    grown = grow(model, n_positions=20, vocab_size=53).eval()
    ids = torch.randint(50, (2, 8))
    with torch.no_grad():
        before, after = model(ids), grown(ids)
        assert torch.equal(grown.transformer.wpe.weight[8:], model.transformer.wpe.weight.repeat(3, 1)[8:20])
        torch.testing.assert_close(after[..., :50], before, rtol=1e-6, atol=1e-6)
        # The head is linear, so the logit of a mean is the mean of the logits.
        torch.testing.assert_close(after[..., 50:], before.mean(-1, keepdim=True).expand(-1, -1, 3))
        assert grown(torch.randint(53, (1, 20))).isfinite().all()
    assert (grown.lm_head.weight is grown.transformer.wte.weight) == tie
    with pytest.raises(UserError, match="n_positions: 4 is less than the model's 8"):
        grow(model, n_positions=4)


def test_a_grown_model_is_the_one_that_transformers_resizes(folder: Path, tmp_path: Path) -> None:
    """Its resizing draws new rows around the mean; with the same rows for the new tokens, the logits agree."""
    transformers = pytest.importorskip("transformers")
    grown = grow(load_language_model(folder)[0], vocab_size=300).eval()
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    theirs.resize_token_embeddings(300, mean_resizing=False)
    with torch.no_grad():
        theirs.transformer.wte.weight[280:] = grown.transformer.wte.weight[280:]
        ids = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(grown(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_character_tokenizer_gets_the_characters_that_it_lacks(tmp_path: Path) -> None:
    old = train_char(["abc é"])
    new = extend_char(old, ["cab 中é 🙂"])
    assert new.encode("abc é") == old.encode("abc é")
    assert new.eot_id == old.eot_id
    assert all(i >= old.vocab_size for i in new.encode("中🙂"))
    text = "cab 中é 🙂"
    assert len(new.encode(text)) == len(text)
    assert new.decode(new.encode(text)) == text
    assert extend_char(old, ["cab"]).ranks == old.ranks
    new.save(tmp_path)
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text, add_special_tokens=False).ids == new.encode(text)


def test_a_model_grows_with_its_tokenizer() -> None:
    tokenizer = train_char(["abcdefgh"])
    config, _ = config_and_tokenizer()
    torch.manual_seed(0)
    base = GPT(GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    extended = extend_char(tokenizer, ["xyz"])
    result, _ = train([corpus(extended.vocab_size)], extended, base, max_steps=1, eval_interval_steps=1)
    assert result.model.config.vocab_size == extended.vocab_size == tokenizer.vocab_size + 3
