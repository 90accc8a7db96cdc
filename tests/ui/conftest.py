"""A server of the page with small random models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2core import prompts
from gpt2core.checkpoint.model_card import ModelCard, write_model_card
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.model import GPT, GPTClassifier
from gpt2core.ui.models import Models, find_models
from gpt2core.ui.server import make_app
from tests.small import config_and_tokenizer
from tests.ui.running import running


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, one that lies deeper, and what is no GPT-2."""
    folder = tmp_path_factory.mktemp("models")
    config, tokenizer = config_and_tokenizer()
    save_model(folder / "pretrained", GPT(config), tokenizer)
    card = ModelCard("A pretrained GPT-2", "Pretrained from random weights on the corpus `embedded`.")
    write_model_card(folder / "pretrained", card)
    save_model(folder / "instruct", GPT(config), tokenizer, chat_template=prompts.chat_template())
    save_model(folder / "classifier", GPTClassifier(config, ("ham", "spam")), tokenizer)
    save_model(folder / "other/deep", GPT(config), tokenizer)
    (folder / "broken").mkdir()
    (folder / "broken/config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.fixture(scope="session")
def address(models_dir: Path) -> Iterator[str]:
    """Of a running server."""
    with running(make_app(Models(find_models([models_dir])))) as started:
        yield started
