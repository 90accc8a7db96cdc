"""Every kind of model directory is opened by transformers as it stands, for our own BPE and for GPT-2's."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import gpt2core
from gpt2core import prompts
from gpt2core.checkpoint import openai
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer import Tokenizer, read_bpe
from gpt2core.tokenizer.train import train_bpe

ROOT = Path(__file__).parents[2]
make_random = runpy.run_path(str(ROOT / "scripts" / "make_random_checkpoint.py"))["make"]
TEXTS = ["The keeper didn't see it.\n\n  Über 12 lamps!", "Pay 3 coins", "A tale of the harbour and of the lamp " * 2]


def make_tokenizer(kind: str, mirror: Path) -> Tokenizer:
    if kind == "our own":
        return train_bpe([" ".join(TEXTS) * 4], 300)
    return read_bpe(mirror / "gpt2-bpe/encoder.json", mirror / "gpt2-bpe/vocab.bpe")


@pytest.fixture(scope="module", params=["our own", "GPT-2's"])
def models(request: pytest.FixtureRequest, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pretrain, convert, finetune-classify and finetune-instruct write, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer(request.param, mirror)
    config = GPTConfig(tokenizer.vocab_size, n_positions=96, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    torch.manual_seed(0)
    save_model(folder / "pretrained", GPT(config), tokenizer)
    save_model(folder / "instruct", GPT(config), tokenizer, chat_template=prompts.chat_template())
    save_model(folder / "classifier", GPTClassifier(config, ("ham", "spam")), tokenizer)
    make_random(config, folder / "openai")
    openai.write_bpe(folder / "openai", tokenizer)
    openai.convert(folder / "openai", folder / "converted")
    return folder


@pytest.mark.parametrize("name", ["pretrained", "converted", "instruct"])
def test_language_models_have_equal_tokens_and_logits(models: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours, tokenizer = gpt2core.load(models / name)
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(models / name, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(models / name)
    assert their_tokenizer.eos_token_id == their_tokenizer.pad_token_id == tokenizer.eot_id
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert their_tokenizer(text)["input_ids"] == ids
        assert their_tokenizer.decode(ids) == tokenizer.decode(ids) == text
        batch = torch.tensor([ids])  # [1, T]
        torch.testing.assert_close(ours(batch), theirs.eval()(batch).logits, atol=1e-4, rtol=1e-4)


def test_the_generation_pipeline_writes_what_we_write(models: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours, tokenizer = gpt2core.load(models / "pretrained")
    pipe = transformers.pipeline("text-generation", str(models / "pretrained"), device="cpu")
    (written,) = pipe(TEXTS[1], max_new_tokens=8, do_sample=False)
    ids = tokenizer.encode(TEXTS[1])
    for _ in range(8):
        ids.append(ours(torch.tensor([ids]))[0, -1].argmax().item())
        if ids[-1] == tokenizer.eot_id:
            ids.pop()
            break
    assert written["generated_text"] == tokenizer.decode(ids)


def test_the_chat_template_is_applied(models: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(models / "instruct")
    _, tokenizer = gpt2core.load(models / "instruct")
    chat = [{"role": "user", "content": "Name a lamp."}]
    ids = theirs.apply_chat_template(chat, return_dict=False)
    assert ids == tokenizer.encode(prompts.alpaca("Name a lamp."))


def test_classifiers_have_equal_labels_and_logits_in_a_padded_batch(models: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours, tokenizer = gpt2core.load(models / "classifier")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(models / "classifier").eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(models / "classifier")
    batch = their_tokenizer(TEXTS, padding=True, return_tensors="pt")  # ids: [B, T]
    lengths = torch.tensor([len(tokenizer.encode(text)) for text in TEXTS])
    assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()
    logits = ours(batch["input_ids"], lengths)  # [B, classes]
    torch.testing.assert_close(logits, theirs(**batch).logits, atol=1e-4, rtol=1e-4)

    pipe = transformers.pipeline("text-classification", str(models / "classifier"), device="cpu", batch_size=3)
    labels = [ours.labels[i] for i in logits.argmax(-1)]
    assert [row["label"] for row in pipe(TEXTS)] == labels
