"""A server of the page with small random models."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import uvicorn

from gpt2core import prompts
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer.train import train_bpe
from gpt2core.ui.models import Models, find
from gpt2core.ui.server import make_app
from gpt2core.weights.model_dir import save_model

TEXT = "The keeper of the harbour took the lamp to the tower, and the lamp was lit. " * 4


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, one that lies deeper, and what is no GPT-2."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_bpe([TEXT], 280)
    config = GPTConfig(tokenizer.vocab_size, n_positions=320, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    torch.manual_seed(0)
    save_model(folder / "pretrained", GPT(config), tokenizer)
    save_model(folder / "instruct", GPT(config), tokenizer, chat_template=prompts.chat_template())
    save_model(folder / "classifier", GPTClassifier(config, ("ham", "spam")), tokenizer)
    save_model(folder / "other/deep", GPT(config), tokenizer)
    (folder / "broken").mkdir()
    (folder / "broken/config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.fixture(scope="session")
def address(models_dir: Path) -> Iterator[str]:
    """Of a running server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(make_app(Models(find([models_dir]))), log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)
