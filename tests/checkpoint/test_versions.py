"""Model directories of other versions of this project: older ones are read, newer ones are recognised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gpt2core import load, prompts
from gpt2core.checkpoint.chat_template import prompt_of
from gpt2core.checkpoint.verify import verify
from gpt2core.doctor.project import model_directories
from gpt2core.errors import UserError
from gpt2core.model import GPTClassifier
from tests.cli.test_cli import Run, run

__all__ = ["run"]  # a fixture
OLDER = Path(__file__).parent / "older"  # its README says which versions wrote them


@pytest.mark.parametrize("name", ["characters", "classifier", "instruct", "mean"])
def test_what_an_older_version_wrote_computes_what_it_did_there(name: str) -> None:
    there = json.loads((OLDER / f"{name}.json").read_text())
    model, tokenizer = load(OLDER / name)
    assert tokenizer is not None and tokenizer.encode(there["text"]) == there["ids"]
    ids = torch.tensor([there["ids"]])  # [1, T]
    with torch.no_grad():
        if isinstance(model, GPTClassifier):
            assert model.labels == ("ham", "spam")
            logits = model(ids, torch.tensor([ids.size(1)]))  # [1, classes]
        else:
            logits = model(ids)[:, -1]  # [1, V]
    torch.testing.assert_close(logits[0], torch.tensor(there["logits"]), rtol=0, atol=1e-5)
    assert verify(OLDER / name).is_whole


def test_an_older_instruct_model_is_asked_in_the_form_that_it_learned() -> None:
    assert prompt_of(OLDER / "instruct") is prompts.alpaca


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_theta": 10_000.0}, "the key 'rope_theta'"),
        ({"model_type": "gpt2core-2"}, "model_type 'gpt2core-2'"),
        ({"architectures": ["GPTRanker"]}, "architectures 'GPTRanker'"),
        ({"position": "max", "activation_function": "relu2"}, "position 'max'"),
    ],
)
def test_what_a_newer_version_wrote_is_recognised(tmp_path: Path, run: Run, changes: dict, named: str) -> None:
    folder = tmp_path / "models" / "classifier"
    shutil.copytree(OLDER / "mean", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match="a newer one made the directory; update this one .*dvc repro") as caught:
        load(folder)
    assert named in str(caught.value)
    ended = run("verify", folder)
    assert ended.code == 1 and f"problem: {caught.value}" in ended.out
    (finding, _) = model_directories(tmp_path)
    assert (finding.level, finding.what) == ("problem", str(caught.value))
