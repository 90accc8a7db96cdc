"""`gpt2core perplexity`, against the model's own logits; and `--dtype`, which it prices."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import gpt2core
from gpt2core.inference import generate
from gpt2core.model.inference import pack
from gpt2core.runtime import DECODING_DTYPES
from tests.cli.test_cli import Run, models, refused, run

__all__ = ["models", "run"]  # fixtures

TEXT = "The lamp of the mill was lit.\nDora took the lamp to the castle.\n" * 30


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_it_is_the_models_loss_over_windows_side_by_side(run: Run, models: Path, text_file: Path) -> None:
    model, tokenizer = gpt2core.load(models / "lm")
    context = model.config.n_positions
    value = json.loads(run("perplexity", models / "lm", text_file, "--stride", str(context), "--json").out)
    ids = tokenizer.encode(TEXT)
    total = 0.0
    for start in range(0, len(ids), context):
        window = torch.tensor([[tokenizer.eot_id, *ids][start : start + context + 1]])
        total += F.cross_entropy(model(window[:, :-1])[0], window[0, 1:], reduction="sum").item()
    assert value["tokens"] == len(ids)
    assert value["nats_per_token"] == pytest.approx(total / len(ids), rel=1e-4)
    assert value["perplexity"] == pytest.approx(math.exp(total / len(ids)), rel=1e-3)
    assert value["word_perplexity"] == pytest.approx(math.exp(total / (14 * 30 + 2 * 30)), rel=1e-3)
    assert value["bits_per_byte"] == pytest.approx(total / math.log(2) / len(TEXT), rel=1e-4)


@pytest.mark.parametrize("stride", [319, 200, 64])
def test_it_is_transformers_documented_strided_loop(run: Run, models: Path, text_file: Path, stride: int) -> None:
    """As in its guide "Perplexity of fixed-length models", which sees one token fewer: the last of a window is only a
    label."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(models / "lm").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "lm")
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(TEXT)["input_ids"]]])
    max_length = theirs.config.n_positions
    total, n_tokens, previous_end = 0.0, 0, 0
    for begin in range(0, ids.size(1), stride):
        end = min(begin + max_length, ids.size(1))
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, : -(end - previous_end)] = -100
        n_labels = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += theirs(window, labels=labels).loss.item() * n_labels
        n_tokens, previous_end = n_tokens + n_labels, end
        if end == ids.size(1):
            break
    flags = ("--context", str(max_length - 1), "--stride", str(stride), "--json")
    value = json.loads(run("perplexity", models / "lm", text_file, *flags).out)
    assert value["tokens"] == n_tokens
    assert value["nats_per_token"] == pytest.approx(total / n_tokens, rel=1e-5)
    assert value["perplexity"] == pytest.approx(math.exp(total / n_tokens), rel=1e-4)


def test_wikitext_is_read_as_people_write_it_and_counted_as_it_is(run: Run, models: Path, text_file: Path) -> None:
    model, tokenizer = gpt2core.load(models / "lm")
    text_file.write_text(" = The Mill = \n \n Dora 's lamp @-@ oil ( two cups ) was lit . \n")
    value = json.loads(run("perplexity", models / "lm", text_file, "--wikitext", "--json").out)
    ids = tokenizer.encode("= The Mill =\n\nDora's lamp-oil (two cups) was lit.\n")
    logits = model(torch.tensor([[tokenizer.eot_id, *ids[:-1]]]))[0]
    total = F.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()
    assert (value["tokens"], value["words"], value["bytes"]) == (len(ids), 4 + 12 + 3, len(text_file.read_bytes()))
    assert value["word_perplexity"] == pytest.approx(math.exp(total / value["words"]), rel=1e-3)
    assert value["bits_per_byte"] == pytest.approx(total / math.log(2) / value["bytes"], rel=1e-4)
    refused(run("perplexity", models / "lm", text_file, "--wikitext", "--max-tokens", "9"), 1, "leave --max-tokens out")


@pytest.mark.parametrize("dtype", DECODING_DTYPES)
def test_every_dtype_says_nearly_the_same(run: Run, models: Path, text_file: Path, dtype: str) -> None:
    exact = json.loads(run("perplexity", models / "lm", text_file, "--json").out)
    value = json.loads(run("perplexity", models / "lm", text_file, "--dtype", dtype, "--json").out)
    assert value["nats_per_token"] == pytest.approx(exact["nats_per_token"], rel=0.02)


@pytest.mark.parametrize("dtype", DECODING_DTYPES)
def test_the_dtype_reaches_the_generator(run: Run, models: Path, dtype: str) -> None:
    model, tokenizer = gpt2core.load(models / "lm")
    ids = tokenizer.encode("The lamp")
    new = generate(pack(model, dtype), torch.tensor([ids]), 20, eos_id=tokenizer.eot_id)[0, len(ids) :].tolist()
    expected = tokenizer.decode(new).split("<|endoftext|>")[0]
    flags = ("--prompt", "The lamp", "--dtype", dtype, "--temperature", "0", "--max-new-tokens", "20")
    ended = run("generate", models / "lm", *flags)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"The lamp{expected}\n"


def test_the_table_is_for_people(run: Run, models: Path, text_file: Path) -> None:
    out = run("perplexity", models / "lm", text_file, "--max-tokens", "100").out
    assert [line.rsplit(maxsplit=1)[0] for line in out.splitlines()] == [
        "tokens", "words", "bytes", "nats per token", "perplexity", "word perplexity", "bits per byte",
    ]  # fmt: skip
    assert out.splitlines()[0].split()[-1] == "100"


def test_documents_are_separated_as_in_a_corpus(run: Run, models: Path, text_file: Path) -> None:
    """The separator is one token, which counts, and no bytes or words."""
    model, tokenizer = gpt2core.load(models / "lm")
    documents = ["The lamp was lit.", "Dora took it.\nShe went home.", "The end."]
    text_file.write_text("\n<|endoftext|>\n".join(documents) + "\n<|endoftext|>\n")
    value = json.loads(run("perplexity", models / "lm", text_file, "--json").out)
    eot = tokenizer.eot_id
    ids = [token for document in documents for token in (*tokenizer.encode(document), eot)][:-1]
    logits = model(torch.tensor([[eot, *ids[:-1]]]))[0]
    total = F.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()
    assert value["tokens"] == len(ids)
    assert value["nats_per_token"] == pytest.approx(total / len(ids), rel=1e-4)
    assert value["bits_per_byte"] == pytest.approx(total / math.log(2) / sum(map(len, documents)), rel=1e-4)


def test_a_perplexity_beyond_all_numbers_is_null(run: Run, models: Path, text_file: Path) -> None:
    text_file.write_text("x" * 3000)
    out = run("perplexity", models / "lm", text_file, "--json").out
    assert json.loads(out, parse_constant=lambda name: pytest.fail(name))["word_perplexity"] is None
    assert "too large" in run("perplexity", models / "lm", text_file).out


def test_mistakes_are_told(run: Run, models: Path, text_file: Path) -> None:
    refused(run("perplexity", models / "lm", text_file, "--stride", "400"), 1, "400 is more than the context of 320")
    refused(run("perplexity", models / "lm", text_file, "--context", "321"), 1, "more than the model's 320 tokens")
    refused(run("perplexity", models / "lm", text_file.with_name("none.txt")), 1, "no such file")
    refused(run("perplexity", models / "lm", text_file.parent), 1, "is a folder")
    text_file.write_text("")
    refused(run("perplexity", models / "lm", text_file), 1, "is empty")
    refused(run("generate", models / "lm", "--dtype", "int4"), 2, "int4")
