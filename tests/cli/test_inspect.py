"""`gpt2core inspect`: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import gpt2core
from tests.cli.test_cli import Run, models, refused, run

__all__ = ["models", "run"]  # fixtures

PROMPT = "The lamp of the harbour"


def test_a_language_model_is_told_in_three_tables(run: Run, models: Path) -> None:
    model, tokenizer = gpt2core.load(models / "lm")
    ids = tokenizer.encode(PROMPT)
    ended = run("inspect", models / "lm", "--prompt", PROMPT, "--top", "2", "--temperature", "0", "--temperature", "3")
    assert ended.code == 0
    lines = [line.split() for line in ended.out.splitlines()]
    assert all([str(i + 1), str(token_id)] in [line[:2] for line in lines] for i, token_id in enumerate(ids))
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0]
    best = tokenizer.token_bytes(int(logits[-1].argmax())).decode("utf-8", "backslashreplace").replace(" ", "·")
    assert f"layer 2, the model {best} " in " ".join(ended.out.split())
    assert ["0", "100.0%", "0.0%", "0.00"] in lines
    mean = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
    assert ["mean", f"{mean:.3f}"] in lines


def test_a_classifier_is_told_by_its_classes(run: Run, models: Path) -> None:
    out = run("inspect", models / "classifier", "--prompt", PROMPT).out
    assert "Class, if the model ended at" in out and "ham" in out and "spam" in out and "embeddings" in out
    assert "temperature" not in out and "loss" not in out


@pytest.mark.parametrize("name", ["lm", "classifier"])
def test_json_is_one_object(run: Run, models: Path, name: str) -> None:
    value = json.loads(run("inspect", models / name, "--prompt", PROMPT, "--json").out)
    _, tokenizer = gpt2core.load(models / name)
    assert value["ids"] == tokenizer.encode(PROMPT)
    assert len(value["attention"]) == 2 and len(value["attention"][0]) == 2
    assert ("lens" in value) == (name == "lm") and ("classes" in value) == (name == "classifier")


@pytest.mark.parametrize("name", ["lm", "classifier"])
def test_out_holds_a_page_pictures_and_numbers(run: Run, models: Path, tmp_path: Path, name: str) -> None:
    ended = run("inspect", models / name, "--prompt", PROMPT, "--out", tmp_path / "look")
    assert f"open {tmp_path / 'look/index.html'} in a browser" in ended.out  # in one piece, however long
    pictures = {"attention.png"} | ({"temperature.png", "token_loss.png"} if name == "lm" else set())
    assert {path.name for path in (tmp_path / "look").iterdir()} == {"index.html", "inspection.json"} | pictures
    for picture in pictures:
        assert min(Image.open(tmp_path / "look" / picture).size) > 100
    value = json.loads((tmp_path / "look/inspection.json").read_text())
    assert value["prompt"] == PROMPT and value["model"] == str(models / name)


def test_an_empty_prompt_is_the_start_of_a_document(run: Run, models: Path) -> None:
    value = json.loads(run("inspect", models / "lm", "--json").out)
    assert value["tokens"] == ["<|endoftext|>"] and value["loss_nats"] == [None]
    assert run("inspect", models / "lm").code == 0


def test_markup_in_a_prompt_is_printed_as_it_stands(run: Run, models: Path) -> None:
    assert "[" in run("inspect", models / "lm", "--prompt", "[bold]lamp[/bold]").out


def test_mistakes_are_named(run: Run, models: Path, tmp_path: Path) -> None:
    refused(run("inspect", tmp_path / "none"), 1, "no such model directory")
    refused(run("inspect", models / "mute", "--prompt", "x"), 1, "vocab.json")
    refused(run("inspect", models / "lm", "--prompt", "The lamp " * 400), 1, "the model 320 positions", "shorten")
    refused(run("inspect", models / "lm", "--top", "0"), 2, "--top")
    refused(run("inspect", models / "lm", "--temperature", "-1"), 2, "--temperature")
    (tmp_path / "file").write_text("")
    refused(run("inspect", models / "lm", "--out", tmp_path / "file"), 2, "--out")
