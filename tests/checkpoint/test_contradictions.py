"""Entries of a model directory that contradict another one, or that only older tools wrote: computed, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gpt2core.checkpoint.model_dir import load, load_classifier, load_language_model, save_model
from gpt2core.checkpoint.verify import verify
from gpt2core.errors import UserError
from gpt2core.model import GPTClassifier
from tests.small import config_and_tokenizer, reconfigure, retensor, save_small_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "model")


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    sizes, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "classifier", GPTClassifier(sizes, ("ham", "spam")), tokenizer)
    return tmp_path / "classifier"


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert len(str(error.value)) < 600
    assert [problem for problem in verify(folder).problems if problem == str(error.value)]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_masks_of_older_versions_of_transformers_are_left_out(model: Path, dtype: torch.dtype) -> None:
    expected, _ = load_language_model(model)
    mask = torch.ones(1, 1, 320, 320).tril().to(dtype)
    retensor(model, lambda tensors: tensors | {"transformer.h.0.attn.bias": mask})
    assert verify(model).is_whole
    found, _ = load_language_model(model)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(found(ids), expected(ids))


def test_two_classes_of_one_name_are_refused(classifier: Path) -> None:
    reconfigure(classifier, {"id2label": {"0": "same", "1": "same"}})
    refused(classifier, "two classes the name 'same'")


@pytest.mark.parametrize("position", ["mean", "first", "padded"])
def test_a_position_that_transformers_would_ignore_is_refused(classifier: Path, position: str) -> None:
    reconfigure(classifier, {"position": position})
    refused(classifier, f"position '{position}' needs model_type 'gpt2core'")


def test_a_padded_length_without_padding_is_refused_by_its_file(classifier: Path) -> None:
    reconfigure(classifier, {"padded_length": 1_000_000})
    refused(classifier, "config.json: padded_length 1000000 does not go with position 'last'")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<|endoftext|>": 3}),
        ("added_tokens.json", {"<|endoftext|>": None}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": {"content": "<|endoftext|>"}}}),
    ],
)
def test_another_id_of_the_end_of_text_is_refused(model: Path, name: str, content: dict[str, object]) -> None:
    path = model / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content))
    refused(model, rf"{name}: gives <\|endoftext\|> the id")


def test_the_same_id_of_the_end_of_text_is_read(model: Path) -> None:
    _, tokenizer = load_language_model(model)
    (model / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": tokenizer.eot_id}))
    assert verify(model).is_whole


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_no_object_says_so(model: Path, name: str) -> None:
    (model / name).write_text("[]")
    refused(model, rf"{name}: the content: must be an object of keys and values, found \[\]")


def test_a_name_of_a_hundred_thousand_characters_is_cut(model: Path) -> None:
    retensor(model, lambda tensors: tensors | {"a" * 100_000: torch.zeros(1)})
    (problem,) = verify(model).problems
    assert len(problem) < 600


def test_labels_in_any_order_are_read(classifier: Path) -> None:
    reconfigure(classifier, {"id2label": {"1": "b", "0": "a"}})
    loaded, _ = load_classifier(classifier)
    assert loaded.labels == ("a", "b")
