"""Pretraining from a converted checkpoint, and on a second corpus, as `dvc repro` runs it."""

from __future__ import annotations

import json

import pytest

from gpt2core.checkpoint.model_dir import load_language_model
from gpt2core.corpus.shards import open_shard
from gpt2core.tokenizer import load_tokenizer
from tests.stages.conftest import Project, clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A model from OpenAI's tiny checkpoint, which continues on the embedded tales, then on a file of its own."""
    project = clone(tmp_path_factory.mktemp("warm") / "project")
    project.profile("tiny")
    (project.root / "data/own/tale.txt").write_text("The kettle sang, and the cat sat by the fire.\n" * 200)
    project.set_params(
        {
            "pretrain.base": "openai/tiny", "pretrain.n_layer": None, "pretrain.n_embd": None, "pretrain.context": 32,
            "pretrain.lr": 0.002, "pretrain.continued_steps": 20, "data.continued_corpus": "own/tale.txt",
        }
    )  # fmt: skip
    project.dvc("repro", "pretrain", timeout_s=600)
    return project


def metrics(project: Project) -> dict[str, float]:
    return json.loads((project.root / "metrics/pretrain.json").read_text())


def test_the_model_has_the_bases_sizes_and_tokenizer(project: Project) -> None:
    base, its_tokenizer = load_language_model(project.root / "models/openai/tiny")
    model, tokenizer = load_language_model(project.root / "models/pretrained")
    assert model.config.n_embd == base.config.n_embd
    assert tokenizer.ranks == its_tokenizer.ranks == load_tokenizer(project.root / "data/tokens").ranks
    assert not (model.transformer.wte.weight == base.transformer.wte.weight).all()


def test_each_corpus_is_learned(project: Project) -> None:
    found = metrics(project)
    assert found["end_val_loss"] < 0.8 * found["start_val_loss"]
    lines = (project.root / "metrics/plots/pretrain.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines] == ["step", "20", "40", "60", "80"]
    tokenize = json.loads((project.root / "metrics/tokenize.json").read_text())
    shard = open_shard(project.root / "data/tokens/continued/train.bin")
    assert tokenize["continued_train_tokens"] == shard.n_tokens
    card = (project.root / "models/pretrained/README.md").read_text()
    assert "`openai/tiny`" in card and "`own/tale.txt`" in card


def test_another_base_reruns_both_stages_and_the_same_one_none(project: Project) -> None:
    assert project.dvc("repro", "pretrain").stages_run == []
    learned = metrics(project)["end_val_loss"]
    own = project.root / "models/own/mine"
    own.parent.mkdir()
    (project.root / "models/pretrained").rename(own)
    project.set_params(
        {
            "pretrain.base": "own/mine", "pretrain.max_steps": 20, "pretrain.warmup_steps": 1,
            "data.corpus": "own/tale.txt",
            "pretrain.continued_steps": None, "data.continued_corpus": None,
        }
    )  # fmt: skip
    assert project.dvc("repro", "pretrain", timeout_s=600).stages_run == ["download-data", "tokenize", "pretrain"]
    assert metrics(project)["start_val_loss"] == pytest.approx(learned, rel=1e-4)  # of the same windows
