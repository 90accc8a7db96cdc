"""`gpt2core compare`: models side by side on the test set of an instruction tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sacrebleu.metrics.chrf import CHRF

import gpt2core
from gpt2core import prompts
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.model import GPT, GPTClassifier
from gpt2core.tokenizer.train import train_bpe
from tests.cli.test_cli import Run, refused, run
from tests.small import TEXT, config_and_tokenizer

__all__ = ["run"]  # a fixture

WORDS = ("lamp", "tower", "harbour", "keeper", "lit")
TEST = [
    {"instruction": f"Name {n}.", "input": word, "output": f"The {word} was lit.", "response": "", "base_response": ""}
    for n, word in enumerate(WORDS)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    config, tokenizer = config_and_tokenizer()
    save_model(root / "a", GPT(config), tokenizer)
    save_model(root / "b", GPT(config), tokenizer, chat_template=prompts.chat_template(prompts.phi3))
    save_model(root / "classifier", GPTClassifier(config, ("x", "y")), tokenizer)
    other = train_bpe([TEXT], 262)
    save_model(root / "other", GPT(config.__class__(other.vocab_size, 320, 16, 2, 2)), other)
    (root / "test.json").write_text(json.dumps(TEST))
    (root / "train.json").write_text(json.dumps(TEST))
    return root


def test_each_model_is_asked_in_its_own_form_and_compared_with_the_first(run: Run, folder: Path) -> None:
    options = ["--responses", folder, "--limit", "4", "--max-new-tokens", "6"]
    found = json.loads(run("compare", folder / "a", folder / "b", *options, "--json").out)
    assert (found["judge"], found["n"]) == ("chrf", 4)
    losses, scores = [], []
    for name, form in (("a", prompts.alpaca), ("b", prompts.phi3)):
        model, tokenizer = gpt2core.load(folder / name)
        nats, n, chrf = 0.0, 0, []
        for entry in TEST[:4]:
            asked = tokenizer.encode(form(entry["instruction"], entry["input"]))
            answer = [*tokenizer.encode(entry["output"]), tokenizer.eot_id]
            logits = model(torch.tensor([[*asked, *answer]]))[0, len(asked) - 1 : -1]
            nats += F.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
            n += len(answer)
            said = tokenizer.decode(greedy(model, asked, 6, tokenizer.eot_id)).strip()
            chrf.append(CHRF(word_order=2).sentence_score(said, [entry["output"]]).score)
        losses.append(nats / n)
        scores.append(sum(chrf) / 4)
    rows = [found["models"][str(folder / name)] for name in "ab"]
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=1e-3)
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-3)
    assert rows[1]["loss_difference"] == pytest.approx(losses[1] - losses[0], abs=1e-3)
    assert "loss_difference" not in rows[0]

    out = run("compare", folder / "a", folder / "b", *options).out.splitlines()
    assert out[0].startswith("4 entries, scores by chrf") and len(out) == 4 and f"{losses[1]:.3f} (" in out[3]


def greedy(model: GPT, ids: list[int], n: int, eot_id: int) -> list[int]:
    ids = list(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    new = ids[-n:]
    return new[: new.index(eot_id)] if eot_id in new else new


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a", "other"), ["other: has other tokens than", "cannot be compared"]),
        (("a", "classifier"), ["classifier: is a classifier"]),
        (("a", "a"), ["named twice"]),
        (("none",), ["none: no such model directory"]),
    ],
)
def test_what_cannot_be_compared_is_refused(run: Run, folder: Path, names: tuple[str, ...], words: list[str]) -> None:
    options = ("--responses", folder, "--max-new-tokens", "1")
    refused(run("compare", *(folder / name for name in names), *options), 1, *words)


def test_without_responses_it_says_what_makes_them(run: Run, folder: Path, tmp_path: Path) -> None:
    refused(run("compare", folder / "a", "--responses", tmp_path), 1, "test.json", "dvc repro finetune-instruct")
