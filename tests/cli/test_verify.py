"""`gpt2core verify` and `gpt2core export-openai`, from the command line to the exit code."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2core.checkpoint import openai
from tests.cli.test_cli import Run, models, refused, run

__all__ = ["models", "run"]  # fixtures


def test_verify_prints_what_it_is_and_ends_with_0(run: Run, models: Path) -> None:
    ended = run("verify", models / "classifier")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[0] == f"{models / 'classifier'}: classifier, whole"
    for words in ("layers        2", "width         16", "labels        ham, spam", "transformers  opens it"):
        assert words in ended.out
    value = json.loads(run("verify", models / "lm", "--json").out)
    assert (value["whole"], value["kind"], value["layers"], value["problems"]) == (True, "language model", 2, [])


def test_verify_lists_all_problems_and_ends_with_1(run: Run, models: Path, tmp_path: Path) -> None:
    config = json.loads((models / "lm/config.json").read_text()) | {"n_layer": 3, "eos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((models / "lm" / name).read_bytes())
    ended = run("verify", tmp_path)
    assert ended.code == 1
    assert ", not whole" in ended.out
    assert "'transformer.h.2.attn.c_attn.bias' is missing" in ended.out
    assert "eos_token_id is 1" in ended.out
    ended = run("verify", tmp_path, "--json")
    assert ended.code == 1
    assert json.loads(ended.out)["whole"] is False


def test_verify_of_nothing(run: Run, tmp_path: Path) -> None:
    refused(run("verify", tmp_path / "none"), 1, "none: no such directory")


def test_export_and_convert_are_each_others_way_back(run: Run, models: Path, tmp_path: Path) -> None:
    ended = run("export-openai", models / "lm", tmp_path / "openai")
    assert ended.code == 0, ended.err
    assert {path.name for path in (tmp_path / "openai").iterdir()} == set(openai.FILES)
    assert run("verify", tmp_path / "openai").code == 0
    assert run("convert", tmp_path / "openai", tmp_path / "again").code == 0
    weights = (tmp_path / "again/model.safetensors").read_bytes()
    assert weights == (models / "lm/model.safetensors").read_bytes()


def test_export_refuses_a_classifier(run: Run, models: Path, tmp_path: Path) -> None:
    refused(run("export-openai", models / "classifier", tmp_path / "openai"), 1, "config.json", "a classifier")
    assert not any(tmp_path.iterdir())
