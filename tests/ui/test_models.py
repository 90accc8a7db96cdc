"""Which directories are models, and of which kind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

import gpt2core
from gpt2core import prompts
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.errors import UserError
from gpt2core.ui.models import Models, find_models


def test_all_kinds_are_found_near_ones_first_and_what_is_no_gpt2_is_told(
    models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [(str(each.path.relative_to(models_dir)), each.kind) for each in find_models([models_dir])]
    assert found == [
        ("pretrained", "language model"), ("other/deep", "language model"),
        ("instruct", "instruct"), ("classifier", "classifier"),
    ]  # fmt: skip
    assert "broken/config.json: model_type must be" in capsys.readouterr().err


def test_a_named_directory_is_that_one_alone(models_dir: Path) -> None:
    (found,) = find_models([models_dir / "classifier"])
    assert found.kind == "classifier" and found.name == str(models_dir / "classifier")


@pytest.mark.slow
def test_a_model_that_transformers_saved_keeps_its_kind(models_dir: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.AutoModelForCausalLM.from_pretrained(models_dir / "instruct").save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(models_dir / "instruct")
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer.chat_template == prompts.chat_template()
    assert [each.kind for each in find_models([tmp_path])] == ["instruct"]


def test_a_model_is_asked_in_the_form_that_it_keeps(models_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = gpt2core.load(models_dir / "instruct")
    save_model(tmp_path / "phi3", model, tokenizer, chat_template=prompts.chat_template(prompts.phi3))
    models = Models(find_models([tmp_path, models_dir]))
    (found,) = (each for each in models.by_name.values() if each.name == str(tmp_path / "phi3"))
    assert found.kind == "instruct" and models.prompt(found.name) is prompts.phi3
    for name in ("instruct", "pretrained"):
        assert models.prompt(str(models_dir / name)) is prompts.alpaca


def test_mistakes_are_named(models_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory; `dvc repro` makes"):
        find_models([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no model directory in it"):
        find_models([tmp_path])
    with pytest.raises(UserError, match="model_type must be"):  # who names it wants to know
        find_models([models_dir / "broken"])
    shutil.copytree(models_dir / "pretrained", tmp_path / "mute")
    for name in ("vocab.json", "tokenizer.json"):
        (tmp_path / "mute" / name).unlink()
    with pytest.raises(UserError, match=r"mute: has no vocab\.json"):
        find_models([tmp_path / "mute"])


def test_a_model_that_was_trained_anew_is_read_anew_and_one_that_is_gone_is_told(
    models_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine"
    shutil.copytree(models_dir / "pretrained", path)
    models = Models(find_models([path]))
    first, _ = models.any(str(path))
    assert models.any(str(path))[0] is first
    other, tokenizer = gpt2core.load(models_dir / "other/deep")
    save_model(path, other, tokenizer)
    os.utime(path / "config.json", ns=(1, 1))
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(models.any(str(path))[0](ids), other(ids))
        torch.testing.assert_close(models.language_model(str(path))[0](ids), other(ids), atol=1e-5, rtol=1e-5)
    shutil.rmtree(path)
    with pytest.raises(UserError, match="is not there any more"):
        models.any(str(path))
