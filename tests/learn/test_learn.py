"""The part as a whole: its names, its docstrings' examples, that it imports little."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest

from gpt2core import learn

NAMES = [
    "SimpleTokenizerV1", "SimpleTokenizerV2", "GPTDatasetV1", "create_dataloader_v1",
    "SelfAttention_v1", "SelfAttention_v2", "CausalAttention", "MultiHeadAttentionWrapper",
    "MultiHeadAttention", "CausalSelfAttention", "PositionalEncoding", "LearnedPositionalEncoding",
    "LayerNorm", "GELU", "FeedForward", "TransformerBlock",
    "DummyGPTModel", "GPTModel", "generate_text_simple", "classify_review",
]  # fmt: skip


def test_the_names_that_readers_look_for_are_there() -> None:
    for name in NAMES:
        assert getattr(learn, name).__name__ == name
    assert set(NAMES) <= set(dir(learn)) == set(learn.__all__)
    with pytest.raises(AttributeError, match="no attribute 'SimpleTokenizerV3'"):
        learn.SimpleTokenizerV3  # noqa: B018


@pytest.mark.parametrize("module", learn.MODULES)
def test_examples_in_docstrings_are_true(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"gpt2core.learn.{module}")).failed == 0


def test_word_tokenizers_need_no_torch() -> None:
    code = "import sys; from gpt2core.learn import SimpleTokenizerV2; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
