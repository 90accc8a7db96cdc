from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import gpt2core
from gpt2core import prompts
from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training.classify import new_classifier

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
        (lambda d: edit_config(d, activation_function="gelu"), "activation_function: .* found 'gelu'"),
        (lambda d: edit_config(d, n_embd=64, n_inner=None), r"has shape \[280, 32\], must have \[280, 64\]"),
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


# --- what transformers saved ---


def test_weights_in_several_files_are_opened(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for tied in (True, False):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, tie_word_embeddings=tied)).eval()
        folder = tmp_path / f"tied_{tied}"
        theirs.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
        ours, _ = gpt2core.load(folder)
        ids = torch.arange(20)[None]  # [1, T]
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: min(d.glob("model-*")).unlink(), r"model-00001-of-\d+.safetensors: no such file"),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "index.json: must have a weight_map"),
        (lambda d: reindex(d, lambda m: m.pop("transformer.wpe.weight")), "'transformer.wpe.weight' is in the weight_"),
        (lambda d: reindex(d, lambda m: m.update(more=min(m.values()))), "'more' is in the weight_map or"),
        (lambda d: reindex(d, lambda m: m.update(more="../x.safetensors")), "'../x.safetensors' is no file of this"),
        (
            lambda d: reindex(d, lambda m: shutil.copy(min(d.glob("model-*")), d / m.setdefault("more", "copy"))),
            "is in another file, too",
        ),
    ],
)
def test_damaged_sets_of_files_are_named(tmp_path: Path, spoil, message: str) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).save_pretrained(tmp_path, max_shard_size="20KB")
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        gpt2core.load(tmp_path)


def reindex(folder: Path, change) -> None:
    """Change the index's weight_map."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("labels", [None, ("no", "yes", "perhaps")])
def test_a_classifier_that_transformers_saved_labels_alike(tmp_path: Path, labels: tuple[str, ...] | None) -> None:
    transformers = pytest.importorskip("transformers")
    named = (
        {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        if labels
        else {}
    )
    config = transformers.GPT2Config(**SIZES, pad_token_id=279, **named)
    theirs = transformers.GPT2ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, _ = gpt2core.load(tmp_path)
    assert ours.labels == (labels or ("LABEL_0", "LABEL_1"))
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 279, 279]])  # [B, T], the second padded
    torch.testing.assert_close(ours(ids, torch.tensor([4, 2])), theirs(ids).logits, atol=1e-5, rtol=0)


def test_a_tokenizer_that_transformers_saved_encodes_alike(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """transformers 5 writes tokenizer.json in place of the two files."""
    transformers = pytest.importorskip("transformers")
    save_model(tmp_path / "m", random_gpt(), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / "m" / name).unlink()
    theirs.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m" / "vocab.json").exists()
    _, ours = gpt2core.load(tmp_path / "m")
    assert (ours.ranks, ours.merges, ours.eot_id) == (tokenizer.ranks, tokenizer.merges, tokenizer.eot_id)
    text = "hello brown world, É\n\n dog"
    assert ours.encode(text) == theirs(text)["input_ids"]

    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"tokenizer_config.json: pad_token: .* found '\[PAD\]'"):
        gpt2core.load(tmp_path / "m")


@pytest.mark.parametrize("base", ["with a tokenizer", "without"])
def test_what_transformers_saved_can_be_the_base_of_a_fine_tuning(
    tmp_path: Path, tokenizer: Tokenizer, base: str
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).eval()
    theirs.save_pretrained(tmp_path)
    if base == "without":
        with pytest.raises(UserError, match="has no vocab.json and merges.txt"):
            load_language_model(tmp_path, dropout=0.0)
        return
    tokenizer.save(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    model, _ = load_language_model(tmp_path, dropout=0.0)
    classifier = new_classifier(model, ("ham", "spam"), "all", seed=0).eval()
    ids = torch.arange(20)[None]  # [1, T]
    hidden = theirs.transformer(ids)[0]  # [1, T, C]
    expected = classifier.score(hidden[:, -1])
    torch.testing.assert_close(classifier(ids, torch.tensor([20])), expected, atol=1e-5, rtol=0)
    classifier(ids, torch.tensor([20])).sum().backward()
    assert classifier.transformer.wte.weight.grad.abs().sum() > 0


# --- what transformers cannot express ---


@pytest.mark.parametrize("position", ["first", "mean"])
def test_a_classifier_that_reads_elsewhere_says_so_and_transformers_refuses_it(
    tmp_path: Path, tokenizer: Tokenizer, position: str
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = GPTClassifier(GPTConfig(**SIZES), ("ham", "spam"), position).eval()
    save_model(tmp_path / "c", model, tokenizer)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert (config["model_type"], config["position"]) == ("gpt2core", position)
    for opener in (transformers.AutoModelForSequenceClassification, transformers.AutoConfig):
        with pytest.raises(ValueError, match="gpt2core"):
            opener.from_pretrained(tmp_path / "c")
    again, _ = gpt2core.load(tmp_path / "c")
    ids, lengths = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]), torch.tensor([4, 2])  # [B, T], [B]
    assert again.position == position
    assert torch.equal(again(ids, lengths), model(ids, lengths))
    hidden = model.transformer(ids)  # [B, T, C]
    expected = hidden[:, 0] if position == "first" else torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    torch.testing.assert_close(model(ids, lengths), model.score(expected))


def test_attention_that_is_not_scaled_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_model(tmp_path / "m", random_gpt(), tokenizer)
    edit_config(tmp_path / "m", scale_attn_weights=False)
    with pytest.raises(UserError, match="scale_attn_weights: .* found False"):
        gpt2core.load(tmp_path / "m")
