"""What `verify` says of sound directories, and that it lists everything that is wrong with the others."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gpt2core.checkpoint.model_dir import save_model
from gpt2core.checkpoint.verify import tokenizer_kind, verify
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer import Tokenizer, read_bpe
from gpt2core.tokenizer.train import train_bpe, train_char

ROOT = Path(__file__).parents[2]
make_random = runpy.run_path(str(ROOT / "scripts" / "make_random_checkpoint.py"))["make"]
SIZES = dict(n_positions=32, n_embd=32, n_layer=2, n_head=4)
TEXT = "The keeper of the härbour took the lamp, and the lamp was lit. " * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT], 280)


@pytest.fixture
def lm(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A sound language model; most tests spoil it."""
    torch.manual_seed(0)
    save_model(tmp_path / "lm", GPT(GPTConfig(280, **SIZES)), tokenizer)
    return tmp_path / "lm"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A sound OpenAI checkpoint."""
    make_random(GPTConfig(300, n_positions=16, n_embd=12, n_layer=2, n_head=3), tmp_path / "openai")
    return tmp_path / "openai"


def test_a_language_model(lm: Path) -> None:
    report = verify(lm)
    assert report.is_whole, report.problems
    model = GPT(GPTConfig(280, **SIZES))
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (report.kind, report.layers, report.width, report.heads) == ("language model", 2, 32, 4)
    assert (report.context, report.vocabulary, report.dtype) == (32, 280, "float32")
    assert (report.tokenizer, report.transformers, report.labels) == ("byte-level BPE", True, None)


@pytest.mark.parametrize("position", ["last", "mean"])
def test_a_classifier(tmp_path: Path, tokenizer: Tokenizer, position: str) -> None:
    save_model(tmp_path / "c", GPTClassifier(GPTConfig(280, **SIZES), ("ham", "spam"), position), tokenizer)
    report = verify(tmp_path / "c")
    assert report.is_whole, report.problems
    assert (report.kind, report.labels) == ("classifier", ["ham", "spam"])
    assert report.transformers is (position == "last")


def test_models_of_characters_without_qkv_bias_and_with_a_head_are_whole(tmp_path: Path) -> None:
    tokenizer = train_char([TEXT])
    config = GPTConfig(tokenizer.vocab_size, **SIZES, qkv_bias=False, tie_word_embeddings=False)
    save_model(tmp_path / "m", GPT(config), tokenizer)
    report = verify(tmp_path / "m")
    assert report.is_whole, report.problems
    assert report.tokenizer == "characters"


def test_an_openai_checkpoint(checkpoint: Path) -> None:
    report = verify(checkpoint)
    assert report.is_whole, report.problems
    assert (report.kind, report.layers, report.vocabulary, report.transformers) == ("OpenAI checkpoint", 2, 300, False)
    assert report.parameters == sum(p.numel() for p in GPT(GPTConfig(300, 16, 12, 2, 3)).parameters())


def test_the_packaged_checkpoint_is_whole() -> None:
    report = verify(ROOT / "gpt2core/assets/openai-tiny")
    assert report.is_whole, report.problems


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_transformers_saved_is_whole(tmp_path: Path, dtype: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=280, **SIZES))
    model.to(getattr(torch, dtype or "float32")).save_pretrained(tmp_path, max_shard_size="20KB")
    report = verify(tmp_path)
    assert report.is_whole, report.problems
    assert (report.dtype, report.tokenizer) == (dtype or "float32", None)


def test_gpt2s_own_bpe_is_known(mirror: Path) -> None:
    bpe = mirror / "gpt2-bpe"
    assert tokenizer_kind(read_bpe(bpe / "encoder.json", bpe / "vocab.bpe")) == "GPT-2's byte-level BPE"


def test_no_directory_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        verify(tmp_path / "none")


def test_other_directories_are_said_to_be_unknown(tmp_path: Path) -> None:
    report = verify(tmp_path)
    assert (report.kind, report.is_whole) == ("unknown", False)
    (tmp_path / "adapter_config.json").write_text("{}")
    report = verify(tmp_path)
    assert (report.kind, report.is_whole) == ("LoRA adapter", False)
    assert "cannot be verified alone" in report.problems[0]


# --- damage ---


def edit(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    if name == "vocab.json":  # the same tables; without it, the two files are read
        (folder / "tokenizer.json").unlink()
    change(value)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def without_its_first_token(vocab: dict[str, int]) -> None:
    vocab.pop("!")
    vocab.update({token: i - 1 for token, i in vocab.items()})


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    change(tensors)
    safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda d: retensor(d, lambda t: t.pop("transformer.ln_f.bias")), "'transformer.ln_f.bias' is missing"),
        (lambda d: retensor(d, lambda t: t.update(beta=torch.zeros(1))), "'beta' is not part of this GPT-2"),
        (
            lambda d: retensor(d, lambda t: t.update({"transformer.ln_f.bias": torch.zeros(31)})),
            "'transformer.ln_f.bias' has shape [31], must have [32]",
        ),
        (lambda d: retensor(d, lambda t: t["transformer.wpe.weight"][3, 3].fill_(float("nan"))), "has NaN or infinity"),
        (lambda d: retensor(d, lambda t: t["transformer.wpe.weight"][3, 3].fill_(float("inf"))), "has NaN or infinity"),
        (lambda d: edit(d, "config.json", lambda c: c.update(n_layer=200)), "is missing"),
        (
            lambda d: [
                retensor(d, lambda t: t["transformer.h.1.attn.c_attn.bias"].fill_(1)),
                edit(d, "config.json", lambda c: c.update(qkv_bias=False)),
            ],
            "'transformer.h.1.attn.c_attn.bias' is not zero",
        ),
        (lambda d: edit(d, "config.json", lambda c: c.update(eos_token_id=0)), "eos_token_id is 0, the tokenizer's"),
        (lambda d: edit(d, "config.json", lambda c: c.update(pad_token_id=280)), "pad_token_id 280 is outside"),
        (lambda d: edit(d, "config.json", lambda c: c.update(model_type="llama")), "model_type must be"),
        (lambda d: edit(d, "vocab.json", lambda v: v.pop("a")), "vocab.json: ids must be 0 to 278"),
        (lambda d: edit(d, "vocab.json", lambda v: v.update({"日": v.pop("a")})), "is no character of GPT-2's byte"),
        (lambda d: edit(d, "vocab.json", without_its_first_token), "lacks 1 of the 256 bytes"),
        (lambda d: edit(d, "vocab.json", lambda v: v.update(qqq=280)), "no merge makes the token of id 280"),
        (lambda d: edit(d, "config.json", lambda c: c.update(vocab_size=279)), "has 280 tokens, the model 279"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda d: (d / "model.safetensors").write_bytes(b"1234"), "damaged or no safetensors"),
    ],
)
def test_damage_of_a_model_directory_is_listed(lm: Path, spoil: Callable[[Path], object], problem: str) -> None:
    spoil(lm)
    report = verify(lm)
    assert any(problem in found for found in report.problems), report.problems


def test_all_problems_are_listed_and_a_crowd_of_them_is_cut(lm: Path) -> None:
    edit(lm, "config.json", lambda c: c.update(n_layer=50, eos_token_id=0))
    retensor(lm, lambda t: t["transformer.wte.weight"].fill_(float("nan")))
    problems = "\n".join(verify(lm).problems)
    assert problems.count("is missing") == 6  # five, and one for the rest
    assert f"{48 * 12 - 5} more" in problems
    assert "NaN" in problems
    assert "eos_token_id" in problems


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


DATA = "model.ckpt.data-00000-of-00001"


@pytest.mark.parametrize(
    ("spoil", "problems"),
    [
        (lambda d: [flip(d / DATA, 5), flip(d / DATA, -1)], ["'model/wte': damaged", "'model/ln_f/b': damaged"]),
        (lambda d: (d / "checkpoint").unlink(), ["checkpoint: no such file"]),
        (lambda d: (d / "encoder.json").unlink(), ["encoder.json: no such file"]),
        (lambda d: (d / "hparams.json").unlink(), ["hparams.json: no such file"]),
        (lambda d: (d / "model.ckpt.index").unlink(), ["model.ckpt.index: no such file"]),
        (lambda d: flip(d / "model.ckpt.index", 9), ["model.ckpt.index: damaged"]),
        (lambda d: edit(d, "hparams.json", lambda h: h.update(n_layer=3)), ["'model/h2/attn/c_attn/b' is missing"]),
        (lambda d: edit(d, "hparams.json", lambda h: h.update(n_layer=10**12)), ["tensors for 1000000000000 layers"]),
        (lambda d: edit(d, "hparams.json", lambda h: h.update(n_ctx=17)), ["'model/wpe' has shape [16, 12], must"]),
    ],
)
def test_damage_of_a_checkpoint_is_listed_once(
    checkpoint: Path, spoil: Callable[[Path], object], problems: list[str]
) -> None:
    spoil(checkpoint)
    found = verify(checkpoint).problems
    for problem in problems:
        assert sum(problem in line for line in found) == 1, found


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_half_a_tokenizer_is_not_whole(name: str, lm: Path) -> None:
    (lm / "tokenizer.json").unlink()
    assert verify(lm).is_whole
    (lm / name).unlink()
    (problem,) = verify(lm).problems
    assert f"{name}: no such file" in problem


@pytest.mark.parametrize(("key", "value", "said"), [("architectures", 5, "valid list"), ("n_layer", 10**9, "n_layer")])
def test_an_absurd_config_is_a_problem(key: str, value: int, said: str, lm: Path) -> None:
    config = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps(config | {key: value}))
    (problem,) = verify(lm).problems
    assert said in problem
