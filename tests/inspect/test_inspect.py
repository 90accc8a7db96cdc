"""What is seen inside a model, beside transformers' own account of it and PyTorch's formulas."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gpt2core
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.errors import UserError
from gpt2core.inspect import ClassifierInspection, LanguageModelInspection, inspect
from gpt2core.inspect.inspection import distribution, trace, visible
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe

TEXT = "The keeper took the lamp to the tower, and the lamp was lit."
N_LAYER, N_HEAD = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model `lm`, and a `classifier`."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_bpe([TEXT * 4], 280)
    config = GPTConfig(
        tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=N_LAYER, n_head=N_HEAD, initializer_range=0.4
    )
    torch.manual_seed(0)
    save_model(folder / "lm", GPT(config), tokenizer)
    save_model(folder / "classifier", GPTClassifier(config, ("ham", "spam")), tokenizer)
    return folder


@pytest.fixture(scope="module")
def lm(folder: Path) -> tuple[GPT, Tokenizer, list[int]]:
    model, tokenizer = gpt2core.load(folder / "lm")
    return model, tokenizer, tokenizer.encode(TEXT)


@pytest.fixture(scope="module")
def found(lm: tuple[GPT, Tokenizer, list[int]]) -> LanguageModelInspection:
    model, tokenizer, ids = lm
    return inspect(model, tokenizer, ids, top=4, temperatures=(0.0, 0.5, 1.0, 3.0))


@torch.no_grad()
def own_logits(model: GPT, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids]))[0]  # [T, V]


def test_attention_and_the_path_between_blocks_are_those_of_transformers(folder: Path, lm) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "lm", attn_implementation="eager").eval()
    model, _, ids = lm
    with torch.no_grad():
        said = theirs(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    ours = trace(model.transformer, torch.tensor(ids))
    assert ours.attention.shape == (N_LAYER, N_HEAD, len(ids), len(ids))
    torch.testing.assert_close(ours.attention, torch.cat(said.attentions), atol=1e-6, rtol=1e-5)
    # Their last hidden state is behind the final norm.
    torch.testing.assert_close(ours.hidden[:-1], torch.cat(said.hidden_states[:-1]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.transformer.ln_f(ours.hidden[-1]), said.hidden_states[-1][0], atol=1e-5, rtol=1e-5)
    assert ours.attention.std(-1).max() > 0.1  # the random model is no uniform one, which would be equal to anything


def test_the_last_row_of_the_lens_is_the_models_own_answer(lm, found: LanguageModelInspection) -> None:
    model, tokenizer, ids = lm
    expected = own_logits(model, ids).softmax(-1).topk(4)
    assert len(found.lens) == N_LAYER + 1
    for position, candidates in enumerate(found.lens[-1]):
        assert [c.id for c in candidates] == expected.indices[position].tolist()
        assert [c.probability for c in candidates] == pytest.approx(expected.values[position].tolist(), abs=2e-6)
        assert [c.token for c in candidates] == [visible(tokenizer.token_bytes(c.id)) for c in candidates]
    assert found.candidates == found.lens[-1][-1]


def test_the_first_row_of_the_lens_is_the_head_on_the_embeddings(lm, found: LanguageModelInspection) -> None:
    model, _, ids = lm
    with torch.no_grad():
        embedded = model.transformer.wte(torch.tensor(ids)) + model.transformer.wpe(torch.arange(len(ids)))
        best = model.lm_head(model.transformer.ln_f(embedded)).argmax(-1)
    assert [candidates[0].id for candidates in found.lens[0]] == best.tolist()


def test_the_loss_of_each_token_is_the_cross_entropy(lm, found: LanguageModelInspection) -> None:
    model, _, ids = lm
    logits = own_logits(model, ids)
    expected = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    assert found.loss_nats[0] is None
    assert found.loss_nats[1:] == pytest.approx(expected.tolist(), abs=2e-6)
    assert found.mean_loss_nats == pytest.approx(F.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item(), abs=1e-5)


def test_a_temperature_divides_the_logits(lm, found: LanguageModelInspection) -> None:
    model, _, ids = lm
    last = own_logits(model, ids)[-1].double()
    chosen = [candidate.id for candidate in found.candidates]
    greedy, *others = found.temperatures
    assert (greedy.temperature, greedy.entropy_bits, greedy.probabilities) == (0.0, 0.0, [1.0, 0.0, 0.0, 0.0])
    for row in others:
        p = (last / row.temperature).softmax(-1)
        assert row.probabilities == pytest.approx(p[chosen].tolist(), abs=2e-6)
        assert row.entropy_bits == pytest.approx(-(p * p.log2()).sum().item(), abs=1e-4)
    assert [row.entropy_bits for row in found.temperatures] == sorted(row.entropy_bits for row in found.temperatures)


def test_a_tiny_temperature_is_greedy_and_not_a_number_too_large() -> None:
    assert distribution(torch.tensor([1.0, 90.0, 3.0]), 1e-9).tolist() == [0, 1, 0]


def test_a_classifier_has_classes_by_layer_and_the_last_are_its_own(folder: Path) -> None:
    model, tokenizer = gpt2core.load(folder / "classifier")
    ids = tokenizer.encode(TEXT)
    found = inspect(model, tokenizer, ids)
    assert isinstance(found, ClassifierInspection)
    with torch.no_grad():
        own = model(torch.tensor([ids]), torch.tensor([len(ids)])).softmax(-1)[0]
    assert len(found.classes) == N_LAYER + 1
    assert found.classes[-1] == pytest.approx(own.tolist(), abs=2e-6)
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in found.classes)
    assert found.labels == ("ham", "spam")


@pytest.mark.parametrize("name", ["lm", "classifier"])
def test_it_is_plain_json(folder: Path, name: str) -> None:
    model, tokenizer = gpt2core.load(folder / name)
    ids = tokenizer.encode(TEXT)
    found = json.loads(json.dumps(inspect(model, tokenizer, ids).to_json(), allow_nan=False))
    assert found["ids"] == ids and len(found["tokens"]) == len(ids)
    weights = torch.tensor(found["attention"])
    assert weights.shape == (N_LAYER, N_HEAD, len(ids), len(ids))
    torch.testing.assert_close(weights.sum(-1), torch.ones(N_LAYER, N_HEAD, len(ids)), atol=1e-4, rtol=0)
    assert not weights.triu(1).any()


def test_blanks_and_halves_of_characters_can_be_seen() -> None:
    assert visible(b" lamp") == "·lamp"
    assert visible(b"\n\t") == "↵→"
    assert visible("é".encode()[:1]) == "\\xc3"
    assert visible(b"\x07") == "\\x07"
    assert visible("\u200b".encode()) == "\\u200b"


def test_one_token_has_no_loss(lm) -> None:
    model, tokenizer, _ = lm
    found = inspect(model, tokenizer, [tokenizer.eot_id])
    assert (found.loss_nats, found.mean_loss_nats, found.tokens) == ([None], None, ["<|endoftext|>"])


def test_an_id_that_only_the_model_has_is_shown_as_such(lm) -> None:
    _, tokenizer, _ = lm
    model = GPT(GPTConfig(tokenizer.vocab_size + 8, n_positions=8, n_embd=8, n_layer=1, n_head=1)).eval()
    found = inspect(model, tokenizer, [1, tokenizer.vocab_size + 3], top=tokenizer.vocab_size + 8)
    assert found.tokens[1] == f"[{tokenizer.vocab_size + 3}]"
    assert len(found.candidates) == tokenizer.vocab_size + 8


def test_nothing_and_too_much_are_refused(lm, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, ids = lm
    with pytest.raises(UserError, match="no tokens"):
        inspect(model, tokenizer, [])
    with pytest.raises(UserError, match="has 65 tokens, the model 64 positions"):
        inspect(model, tokenizer, [1] * 65)
    monkeypatch.setattr(sys.modules["gpt2core.inspect.inspection"], "MAX_WEIGHTS", N_LAYER * N_HEAD * 100)
    with pytest.raises(UserError, match="has 11 tokens; with the 12 heads of this model at most 10"):
        inspect(model, tokenizer, [1] * 11)
    inspect(model, tokenizer, [1] * 10)
