"""Projects in which nothing was tracked yet, with a real SQLite store; small random models."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gpt2core import prompts
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.model import GPT, GPTClassifier
from gpt2core.tracking import store
from tests.small import config_and_tokenizer

LABELS = ("ham", "odd", "spam")
ENVIRONMENT = (
    "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "GPT2CORE_TRACKING", "MLFLOW_RUN_ID",
    "MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT",
)  # fmt: skip


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database without runs. Creating one takes seconds, so all of pytest's processes share it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    store.prepare_mlflow()
    with store.lock(root):
        store.local_store(root)
    return root / store.DATABASE


@pytest.fixture
def fresh_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing was tracked yet."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def root(fresh_root: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store, fresh_root / "mlflow.db")
    return fresh_root


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    sizes, tokenizer = config_and_tokenizer()
    save_model(folder / "classifier", GPTClassifier(sizes, LABELS), tokenizer)
    save_model(folder / "instruct", GPT(sizes), tokenizer, chat_template=prompts.chat_template(prompts.phi3))
    return folder
