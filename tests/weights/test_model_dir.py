from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

import gpt2core
from gpt2core import prompts
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe
from gpt2core.weights.model_dir import save_model

SIZES = dict(vocab_size=280, n_positions=32, n_embd=32, n_layer=2, n_head=4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["hello world, the quick brown fox jumps over the lazy dog; hello again, world"] * 3, 280)


def random_gpt(**changes: object) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(SIZES | changes))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"tie_word_embeddings": False}])
def test_a_saved_model_is_the_same_here_and_in_transformers(
    tmp_path: Path, tokenizer: Tokenizer, changes: dict
) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_gpt(**changes)
    save_model(tmp_path / "m", model, tokenizer)
    ids = torch.tensor([tokenizer.encode("hello the world fox")])
    again, its_tokenizer = gpt2core.load(tmp_path / "m")
    assert torch.equal(again(ids), model(ids))
    assert again.config == model.config
    assert its_tokenizer.ranks == tokenizer.ranks
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float64)
    torch.testing.assert_close(model.double()(ids), theirs(ids).logits, atol=1e-9, rtol=0)


def test_same_weights_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, random_gpt(), tokenizer)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_what_transformers_saved_is_opened(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**SIZES)
    ids = torch.arange(20)[None]
    for name, theirs in (
        ("lm", transformers.GPT2LMHeadModel(config)),
        ("base", transformers.GPT2Model(config)),
    ):
        theirs.save_pretrained(tmp_path / name)
        ours, tokenizer = gpt2core.load(tmp_path / name)
        assert tokenizer is None
        expected = theirs.eval()(ids)[0] if name == "lm" else theirs.eval()(ids)[0] @ theirs.wte.weight.T
        torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=0)


def test_a_classifier_labels_alike_in_transformers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = GPTClassifier(GPTConfig(**SIZES), ("ham", "spam")).eval()
    save_model(tmp_path / "c", model, tokenizer)
    again, its_tokenizer = gpt2core.load(tmp_path / "c")
    assert again.labels == ("ham", "spam")
    texts = ["hello world", "the lazy dog jumps"]
    pipe = transformers.pipeline("text-classification", str(tmp_path / "c"), top_k=None, device="cpu")
    for text, theirs in zip(texts, pipe(texts), strict=True):
        ids = torch.tensor([its_tokenizer.encode(text)])
        p = again(ids, torch.tensor([ids.size(1)])).softmax(-1)[0]
        for row in theirs:
            assert row["score"] == pytest.approx(p[again.labels.index(row["label"])].item(), abs=1e-5)


def test_the_chat_template_is_the_alpaca_prompt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    save_model(tmp_path / "m", random_gpt(), tokenizer, chat_template=prompts.chat_template())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")

    def rendered(*messages: tuple[str, str]) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        return theirs.apply_chat_template(chat, tokenize=False)

    assert rendered(("user", "Name a fox.")) == prompts.alpaca("Name a fox.")
    assert rendered(("system", "It runs."), ("user", "Rewrite.")) == prompts.alpaca("Rewrite.", "It runs.")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: edit_config(d, model_type="llama"), "model_type must be 'gpt2'"),
        (lambda d: edit_config(d, activation_function="gelu"), "activation_function 'gelu' is not GPT-2's"),
        (lambda d: edit_config(d, n_embd=64, n_inner=None), r"is \[280, 32\], config.json makes it \[280, 64\]"),
        (lambda d: edit_config(d, n_layer=3), "'transformer.h.2.attn.c_attn.bias' is missing"),
        (lambda d: edit_config(d, n_layer=1), "'transformer.h.1.attn.c_attn.bias' is not part of this GPT-2"),
        (lambda d: edit_config(d, n_embd="wide"), "config.json"),
        (lambda d: edit_config(d, qkv_bias=False), "is not zero"),
        (lambda d: (d / "config.json").unlink(), "it has no config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "must be saved as safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x80\x02pickle"), "damaged or no safetensors"),
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]),
            "damaged or no safetensors",
        ),
    ],
)
def test_damaged_directories_are_named(tmp_path: Path, tokenizer: Tokenizer, damage, message: str) -> None:
    save_model(tmp_path / "m", random_gpt(), tokenizer)
    damage(tmp_path / "m")
    with pytest.raises(UserError, match=message):
        gpt2core.load(tmp_path / "m")


def test_an_absent_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model directory"):
        gpt2core.load(tmp_path / "absent")


def test_the_saved_file_has_transformers_layout(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_gpt()
    save_model(tmp_path / "m", model, tokenizer)
    tensors = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)
    assert torch.equal(tensors["transformer.h.0.mlp.c_fc.weight"], model.transformer.h[0].mlp.c_fc.weight.T)
