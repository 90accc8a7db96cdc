"""A `config.json` that another tool or an attacker wrote: read correctly, or refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2core.checkpoint.model_dir import load_classifier, load_language_model, save_model
from gpt2core.checkpoint.verify import verify
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTClassifier
from tests.small import config_and_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "model", GPT(sizes), tokenizer)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_embd", "null"), ("n_embd", "{}"), ("n_embd", "1e999"), ("n_embd", "1000000000"), ("n_embd", "9" * 5000),
        ("n_embd", "true"), ("n_embd", '"16"'), ("n_embd", "16.5"), ("n_embd", "-16"), ("n_embd", "0"),
        ("n_head", "64.5"), ("n_head", "[]"), ("n_layer", "1e9"), ("n_positions", "NaN"), ("vocab_size", '"x"'),
        ("layer_norm_epsilon", "NaN"), ("layer_norm_epsilon", "0"), ("layer_norm_epsilon", "-1"),
        ("layer_norm_epsilon", "Infinity"), ("resid_pdrop", "5"), ("attn_pdrop", "-0.1"), ("embd_pdrop", "1"),
        ("initializer_range", "1e999"), ("tie_word_embeddings", '"no"'), ("tie_word_embeddings", "1"),
        ("problem_type", "[]"), ("scale_attn_weights", "0"), ("scale_attn_by_inverse_layer_idx", '"no"'),
        ("eos_token_id", "0"), ("eos_token_id", '"x"'), ("pad_token_id", "[]"), ("bos_token_id", "-1"), ("dtype", "7"),
        ("n_inner", "7"), ("n_inner", "[]"), ("position", "{}"), ("architectures", "7"), ("model_type", "[]"),
        ("activation_function", "[]"), ("activation_function", '"relu"'),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_with_its_key(folder: Path, key: str, value: str) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content[key] = "HERE"
    path.write_text(json.dumps(content).replace('"HERE"', value))
    with pytest.raises(UserError) as error:
        load_language_model(folder)
    assert "config.json" in str(error.value)
    assert key in str(error.value) or "digits" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500
    assert not verify(folder).is_whole


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    sizes, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "classifier", GPTClassifier(sizes, ("ham", "spam")), tokenizer)
    return tmp_path / "classifier"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("problem_type", "regression", "problem_type 'regression' is not supported"),
        ("problem_type", "multi_label_classification", "problem_type 'multi_label_classification'"),
        ("id2label", {"0": "score"}, "id2label has one class"),
        ("id2label", {"0": "a", "2": "b"}, "id2label must map 0, 1, … to the classes' names, found 0, 2"),
        ("id2label", {"0": 1, "1": 2}, "id2label.0: Input should be a valid string"),
        ("id2label", dict.fromkeys(map(str, range(1, 10_000)), "x"), "id2label must map"),
        ("pad_token_id", 65, "pad_token_id 65 is a token of texts"),
    ],
)
def test_a_head_that_computes_no_class_is_refused(classifier: Path, key: str, value: object, message: str) -> None:
    path = classifier / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=message) as error:
        load_classifier(classifier)
    assert len(str(error.value)) < 500
    assert not verify(classifier).is_whole


def test_a_language_model_may_name_a_problem_type(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": "regression"}))
    load_language_model(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers_are_refused(folder: Path, dtype: torch.dtype) -> None:
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    name = min(tensors)
    tensors[name] = torch.zeros(tensors[name].shape, dtype=dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{name}.*floating-point"):
        load_language_model(folder)
    assert not verify(folder).is_whole


def test_a_header_that_calls_floats_integers_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(UserError, match="floating-point"):
        load_language_model(folder)
