"""OpenAI's format to model directories: against TensorFlow, which writes, and transformers, which reads."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2core import files
from gpt2core.checkpoint import model_dir, names, openai
from gpt2core.checkpoint.tf_checkpoint import TFCheckpoint
from gpt2core.checkpoint.tf_writer import write_checkpoint
from gpt2core.config.presets import PRESETS
from gpt2core.errors import UserError
from gpt2core.model import GPTConfig
from gpt2core.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parents[2]
make_random = runpy.run_path(str(ROOT / "scripts" / "make_random_checkpoint.py"))["make"]
SIZES = GPTConfig(vocab_size=300, n_positions=16, n_embd=12, n_layer=2, n_head=3)
TEXT = "Hello there, it's a tale of 12 things.\n\nÜber!"


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """A sound OpenAI directory; most tests spoil it."""
    make_random(SIZES, tmp_path / "src")
    return tmp_path / "src"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="module")
def by_transformers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose weights transformers drew and saved."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("by_transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=300, n_positions=16, n_embd=12, n_layer=2, n_head=3)
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():  # or biases are all zero and gains one, and could be swapped unseen
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    alphabet = [bytes([byte]) for byte in range(256)]
    pairs = [
        (b"t", b"h"),
        (b" ", b"th"),
        *((b" ", bytes([byte])) for byte in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO"),
    ]
    ranks = {token: i for i, token in enumerate([*alphabet, *(left + right for left, right in pairs)])}
    Tokenizer(ranks, pairs, eot_id=299).save(folder)
    return folder


@pytest.fixture(scope="module")
def by_tensorflow(
    by_transformers: Path, tensorflow: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same model in OpenAI's format, by the script."""
    folder = tmp_path_factory.mktemp("by_tensorflow") / "openai"
    tensorflow(ROOT / "scripts" / "make_openai_tiny.py", by_transformers, folder)
    return folder


def test_tensorflow_writes_the_seven_files_in_openais_shapes(by_tensorflow: Path) -> None:
    assert {path.name for path in by_tensorflow.iterdir()} == set(openai.FILES)
    assert (by_tensorflow / "vocab.bpe").read_text(encoding="utf-8").startswith("#version: 0.2\n")
    entries = TFCheckpoint(by_tensorflow / "model.ckpt").entries
    assert entries["model/h1/attn/c_attn/w"].shape == (1, 12, 36)
    assert entries["model/h0/mlp/c_proj/w"].shape == (1, 48, 12)
    assert entries["model/wpe"].shape == (16, 12)
    # The graph has no weights in it.
    assert (by_tensorflow / "model.ckpt.meta").stat().st_size < 100_000


def test_there_and_back_gives_transformers_its_model_again(
    by_transformers: Path, by_tensorflow: Path, out: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    openai.convert(by_tensorflow, out)
    original = transformers.GPT2LMHeadModel.from_pretrained(by_transformers)
    converted = transformers.GPT2LMHeadModel.from_pretrained(out)
    expected, found = original.state_dict(), converted.state_dict()
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert converted.lm_head.weight is converted.transformer.wte.weight

    tokenizer = transformers.GPT2Tokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == 16
    assert tokenizer(TEXT)["input_ids"] == load_tokenizer(by_transformers).encode(TEXT)


def test_our_model_computes_what_transformers_computes(by_transformers: Path, by_tensorflow: Path, out: Path) -> None:
    transformers = pytest.importorskip("transformers")
    openai.convert(by_tensorflow, out)
    ours, tokenizer = model_dir.load(out)
    assert tokenizer.eot_id == 299
    ids = torch.arange(15)[None] * 17  # [1, T]
    with torch.no_grad():
        expected = transformers.GPT2LMHeadModel.from_pretrained(by_transformers).eval()(ids).logits
        torch.testing.assert_close(ours(ids), expected, rtol=1e-4, atol=1e-4)


def test_config_has_gpt2configs_keys(src: Path, out: Path) -> None:
    openai.convert(src, out)
    config = files.read_json(out / "config.json")
    expected = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 300,
        "n_positions": 16,
        "n_embd": 12,
        "n_head": 3,
        "n_layer": 2,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "bos_token_id": 299,
        "eos_token_id": 299,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "dtype": "float32",
    }
    assert expected.items() <= config.items()


def test_same_input_same_bytes(src: Path, out: Path, tmp_path: Path) -> None:
    openai.convert(src, out)
    openai.convert(src, tmp_path / "again")
    hashes = {path.name: files.sha256(path) for path in out.iterdir()}
    assert hashes == {path.name: files.sha256(path) for path in (tmp_path / "again").iterdir()}
    assert set(hashes) == {
        "config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "vocab.json",
    }  # fmt: skip
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # none of them private


@pytest.mark.parametrize(
    ("size", "n_parameters"),  # with the tied head, counted by others (facts of the published models)
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_table_has_all_parameters_of_the_published_models(size: str, n_parameters: int) -> None:
    config = GPTConfig(vocab_size=50_257, **PRESETS[size])
    rows = names.table(config)
    assert sum(np.prod(row.shape) for row in rows) == n_parameters
    assert all(np.prod(row.shape) == np.prod(row.openai_shape) for row in rows)
    assert len({row.hf for row in rows}) == len(rows)
    assert len({row.openai for row in rows}) == len(rows)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_precision_keep_their_bits(src: Path, out: Path, dtype: str) -> None:
    transformers = pytest.importorskip("transformers")
    halves = {}
    for name, array in TFCheckpoint(src / "model.ckpt").items():
        tensor = torch.from_numpy(array.copy()).to(getattr(torch, dtype))
        halves[name] = tensor
    write_checkpoint(src / "model.ckpt", ((name, as_numpy(tensor)) for name, tensor in halves.items()), dtype)
    assert {entry.dtype for entry in TFCheckpoint(src / "model.ckpt").entries.values()} == {dtype}
    openai.convert(src, out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert theirs.dtype == getattr(torch, dtype)
    assert torch.equal(theirs.transformer.h[1].mlp.c_fc.weight, halves["model/h1/mlp/c_fc/w"][0])
    ours, _ = model_dir.load(out)
    assert torch.equal(ours.transformer.wte.weight, halves["model/wte"].float())


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """NumPy has no bfloat16; its bits will do."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def test_mixed_dtypes_become_float32_where_transformers_opens_them(src: Path, out: Path) -> None:
    rewrite(src, lambda t: t.update({"model/ln_f/b": np.full(12, 0.5, np.float16)}))
    openai.convert(src, out)
    assert files.read_json(out / "config.json")["dtype"] == "float32"
    model, _ = model_dir.load(out)
    assert model.transformer.ln_f.bias.tolist() == [0.5] * 12


def test_converting_imports_no_torch(src: Path, out: Path) -> None:
    """It takes longer to import than the 124M checkpoint to convert."""
    code = f"""
import sys
from gpt2core.checkpoint.openai import convert
convert({str(src)!r}, {str(out)!r})
print([name for name in ("torch", "tensorflow", "pandas") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- errors ---


def rewrite(src: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the checkpoint's tensors."""
    tensors = {name: array.copy() for name, array in TFCheckpoint(src / "model.ckpt").items()}
    change(tensors)
    write_checkpoint(src / "model.ckpt", tensors.items())


def set_hparams(src: Path, **values: object) -> None:
    hparams = files.read_json(src / "hparams.json") | values
    (src / "hparams.json").write_text(json.dumps(hparams), encoding="utf-8")


def flip_last_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


SPOILERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tensor": (
        lambda src: rewrite(src, lambda t: t.pop("model/h1/ln_2/g")),
        r"tensor 'model/h1/ln_2/g' is missing$",
    ),
    "unknown tensor": (
        lambda src: rewrite(src, lambda t: t.update(beta1_power=np.zeros(1, np.float32))),
        "'beta1_power' is not part of this GPT-2",
    ),
    "wrong shape": (
        lambda src: rewrite(src, lambda t: t.update({"model/h0/attn/c_attn/w": t["model/h0/attn/c_attn/w"][0]})),
        r"'model/h0/attn/c_attn/w' has shape \[12, 36\], must have \[1, 12, 36\]",
    ),
    "wrong dtype": (
        lambda src: rewrite(src, lambda t: t.update({"model/ln_f/b": np.zeros(12, np.int32)})),
        "'model/ln_f/b' is int32, must be one of float32, float16, bfloat16",
    ),
    "bit flip": (lambda src: flip_last_bit(src / "model.ckpt.data-00000-of-00001"), "tensor 'model/ln_f/b': damaged"),
    "n_layer too small": (lambda src: set_hparams(src, n_layer=1), "has 2 blocks, hparams.json says n_layer 1"),
    "n_layer enormous": (lambda src: set_hparams(src, n_layer=10**12), "says n_layer 1000000000000"),
    "n_embd": (lambda src: set_hparams(src, n_embd=24), r"'model/wte' has shape \[300, 12\], .* \[300, 24\]"),
    "n_ctx": (lambda src: set_hparams(src, n_ctx=17), r"'model/wpe' has shape \[16, 12\], .* \[17, 12\]"),
    "n_vocab": (lambda src: set_hparams(src, n_vocab=301), "n_vocab is 301, encoder.json has 300 tokens"),
    "n_head": (lambda src: set_hparams(src, n_head=5), r"hparams.json: .*5 heads do not divide the width n_embd 12"),
    "no number": (lambda src: set_hparams(src, n_head="3"), "hparams.json: n_head must be a positive whole number"),
    "true": (lambda src: set_hparams(src, n_head=True), "n_head must be a positive whole number, found True"),
    "no object": (lambda src: (src / "hparams.json").write_text("[]"), "hparams.json: must be a JSON object"),
    **{
        f"no {name}": (lambda src, name=name: (src / name).unlink(), name)
        for name in openai.FILES
        if name not in ("checkpoint", "model.ckpt.meta")
    },
}


@pytest.mark.parametrize("case", SPOILERS)
def test_bad_source_is_named_and_leaves_nothing_behind(case: str, src: Path, out: Path) -> None:
    spoil, message = SPOILERS[case]
    spoil(src)
    with pytest.raises(UserError, match=message) as error:
        openai.convert(src, out)
    assert str(src) in str(error.value)
    assert [path.name for path in out.parent.iterdir()] == ["src"]


def test_failure_keeps_the_model_that_was_there(src: Path, out: Path) -> None:
    openai.convert(src, out)
    before = files.sha256(out / "model.safetensors")
    flip_last_bit(src / "model.ckpt.data-00000-of-00001")
    with pytest.raises(UserError, match="damaged"):
        openai.convert(src, out)
    assert files.sha256(out / "model.safetensors") == before


def test_source_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory; it must hold OpenAI's files: checkpoint, encoder"):
        openai.convert(tmp_path / "nowhere", tmp_path / "out")


def test_source_is_never_overwritten(src: Path) -> None:
    for out in (src, src.parent):
        with pytest.raises(UserError, match="would delete"):
            openai.convert(src, out)
    assert {path.name for path in src.iterdir()} == set(openai.FILES)


def test_a_folder_of_other_things_is_never_replaced(src: Path, out: Path) -> None:
    out.mkdir()
    (out / "letter.txt").write_text("dear reader")
    with pytest.raises(UserError, match="is not part of a model directory"):
        openai.convert(src, out)
    assert (out / "letter.txt").exists()


def test_random_checkpoint_is_openais_layout_and_repeats(src: Path, tmp_path: Path) -> None:
    assert {path.name for path in src.iterdir()} == set(openai.FILES)
    make_random(SIZES, tmp_path / "again")
    assert all(files.sha256(path) == files.sha256(tmp_path / "again" / path.name) for path in src.iterdir())
    weights = TFCheckpoint(src / "model.ckpt")["model/h0/mlp/c_fc/w"]
    assert weights.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.slow
def test_gpt2_124m_from_end_to_end(tmp_path: Path) -> None:
    make_random(GPTConfig(vocab_size=50_257, **PRESETS["124M"]), tmp_path / "src")
    assert (tmp_path / "src" / "model.ckpt.data-00000-of-00001").stat().st_size == 497_759_232  # OpenAI's own
    openai.convert(tmp_path / "src", tmp_path / "out")
    model, _ = model_dir.load(tmp_path / "out")
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808
