"""A classifier that reads the last of padded tokens, as in LLMs-from-scratch, chapter 6."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt2core.checkpoint.model_dir import load_classifier, save_model
from gpt2core.errors import UserError
from gpt2core.inference.classify import classify
from gpt2core.model import GPTClassifier
from tests.small import config_and_tokenizer, reconfigure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "padded", GPTClassifier(config, ("ham", "spam"), "padded", 12).eval(), tokenizer)
    return tmp_path / "padded"


def test_the_logits_are_those_of_the_books_formula(folder: Path) -> None:
    """`model(padded)[:, -1, :]`, for texts that are shorter and longer than the padding."""
    model, tokenizer = load_classifier(folder)
    assert (model.position, model.padded_length) == ("padded", 12)
    texts = ["The lamp", "", "The keeper of the harbour took the lamp to the tower, and the lamp was lit."]
    rows = [tokenizer.encode(text)[:12] for text in texts]
    padded = torch.tensor([row + [tokenizer.eot_id] * (12 - len(row)) for row in rows])  # [3, 12]
    with torch.no_grad():
        logits = model.score(model.transformer(padded)[:, -1, :])  # [3, 2]
    for found, expected in zip(classify(model, tokenizer, texts), logits.softmax(-1).tolist(), strict=True):
        assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-6)


def test_it_differs_from_the_last_token_of_the_text(folder: Path) -> None:
    model, tokenizer = load_classifier(folder)
    last = GPTClassifier(model.config, model.labels).eval()
    last.load_state_dict(model.state_dict())
    assert classify(model, tokenizer, ["The lamp"]) != classify(last, tokenizer, ["The lamp"])


@pytest.mark.parametrize(
    "changes", [{"padded_length": None}, {"padded_length": 0}, {"padded_length": 321}, {"position": "mean"}]
)
def test_a_length_that_cannot_be_is_refused(folder: Path, changes: dict[str, object]) -> None:
    reconfigure(folder, changes)
    with pytest.raises(UserError, match="padded_length"):
        load_classifier(folder)


def test_transformers_refuses_the_directory(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="gpt2core"):
        transformers.AutoModelForSequenceClassification.from_pretrained(folder)
