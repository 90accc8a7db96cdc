"""The way back to OpenAI's format: against TensorFlow, which reads it, and against our own way there."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from gpt2core import files
from gpt2core.checkpoint import names, openai
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.checkpoint.openai_export import export
from gpt2core.checkpoint.tf_checkpoint import TFCheckpoint
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer import Tokenizer, read_bpe
from gpt2core.tokenizer.train import train_bpe

SIZES = dict(vocab_size=280, n_positions=32, n_embd=24, n_layer=2, n_head=4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["hello world, the quick brown fox jumps over the lazy dog; hello again, world"] * 3, 280)


def save_random(folder: Path, tokenizer: Tokenizer, **changes: object) -> Path:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(SIZES | changes)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture
def model(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A model directory; dropouts as OpenAI's, which convert gives every model."""
    return save_random(tmp_path / "model", tokenizer, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: files.sha256(path) for path in folder.iterdir()}


def test_there_and_back_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "openai")
    assert {path.name for path in (tmp_path / "openai").iterdir()} == set(openai.FILES)
    openai.convert(tmp_path / "openai", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(model)
    export(tmp_path / "again", tmp_path / "openai again")
    assert hashes(tmp_path / "openai again") == hashes(tmp_path / "openai")


def test_tensorflow_reads_it(model: Path, tensorflow: Callable[..., None], tmp_path: Path) -> None:
    """The newest checkpoint of the directory, every tensor, and the .meta file."""
    export(model, tmp_path / "openai")
    (tmp_path / "read.py").write_text(f"""
import numpy as np, tensorflow as tf
prefix = tf.train.latest_checkpoint({str(tmp_path / "openai")!r})
reader = tf.train.load_checkpoint(prefix)
np.savez({str(tmp_path / "read.npz")!r}, **{{
    name.replace("/", "|"): reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
}})
meta = tf.compat.v1.MetaGraphDef.FromString(open(prefix + ".meta", "rb").read())
assert list(meta.meta_info_def.tags) == ["weights only"]
assert len(meta.graph_def.node) == 0
""")
    tensorflow(tmp_path / "read.py")
    read = np.load(tmp_path / "read.npz")
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    rows = names.table(GPTConfig(**SIZES))
    assert {name.replace("|", "/") for name in read.files} == {row.openai for row in rows}
    for row in rows:
        theirs = read[row.openai.replace("/", "|")]
        assert theirs.shape == row.openai_shape
        assert theirs.tobytes() == tensors[row.hf].numpy().tobytes(), row.hf


def test_half_precision_becomes_float32_of_the_same_values(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(halves, path)
    export(model, tmp_path / "openai")
    wte = TFCheckpoint(tmp_path / "openai" / "model.ckpt")["model/wte"]
    assert np.array_equal(wte, halves["transformer.wte.weight"].float().numpy())


def test_what_transformers_saved_is_exported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The base model alone, without the prefix, in several files."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Model(transformers.GPT2Config(**SIZES))
    theirs.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    tokenizer.save(tmp_path / "m")
    export(tmp_path / "m", tmp_path / "openai")
    openai.convert(tmp_path / "openai", tmp_path / "again")
    again = transformers.GPT2Model.from_pretrained(tmp_path / "again")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


def test_the_bpe_is_openais_to_the_byte(mirror: Path, tmp_path: Path) -> None:
    bpe = mirror / "gpt2-bpe"
    openai.write_bpe(tmp_path, read_bpe(bpe / "encoder.json", bpe / "vocab.bpe"))
    for name in ("encoder.json", "vocab.bpe"):
        assert (tmp_path / name).read_bytes() == (bpe / name).read_bytes()


def test_no_qkv_bias_is_a_bias_of_zeros(tmp_path: Path, tokenizer: Tokenizer) -> None:
    export(save_random(tmp_path / "m", tokenizer, qkv_bias=False), tmp_path / "openai")
    assert not TFCheckpoint(tmp_path / "openai" / "model.ckpt")["model/h1/attn/c_attn/b"].any()


# --- what the format cannot express ---


def test_a_head_of_its_own_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    refused(save_random(tmp_path / "m", tokenizer, tie_word_embeddings=False), "tie_word_embeddings is false")


def test_another_epsilon_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    refused(save_random(tmp_path / "m", tokenizer, layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06")


def test_a_classifier_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_model(tmp_path / "m", GPTClassifier(GPTConfig(**SIZES), ("ham", "spam")), tokenizer)
    refused(tmp_path / "m", "a classifier; OpenAI's format holds language models only")


def test_no_tokenizer_is_refused(model: Path) -> None:
    for name in ("merges.txt", "tokenizer.json"):
        (model / name).unlink()
    refused(model, "has no vocab.json and merges.txt")


def test_a_padded_vocabulary_is_refused(model: Path) -> None:
    path = model / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["transformer.wte.weight"] = torch.zeros(288, SIZES["n_embd"])
    safetensors.torch.save_file(tensors, path)
    config = json.loads((model / "config.json").read_text()) | {"vocab_size": 288}
    (model / "config.json").write_text(json.dumps(config))
    refused(model, "the tokenizer has 280 tokens and the model 288")


def test_a_missing_tensor_is_named(model: Path) -> None:
    path = model / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["transformer.h.1.ln_2.bias"]
    safetensors.torch.save_file(tensors, path)
    refused(model, "'transformer.h.1.ln_2.bias' is missing")


def refused(model: Path, message: str) -> None:
    """One message, and nothing is written."""
    with pytest.raises(UserError, match=message):
        export(model, model.parent / "out")
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_a_folder_of_other_things_is_never_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear reader")
    with pytest.raises(UserError, match="is not part of a directory in OpenAI's format"):
        export(model, tmp_path / "letters")
    with pytest.raises(UserError, match="would delete"):
        export(model, model)
    assert (tmp_path / "letters" / "dear.txt").exists()


def test_a_full_disk_is_one_message(model: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes a file; Python ignores the signal
    try:
        with pytest.raises(UserError, match="openai: cannot be written"):
            export(model, tmp_path / "openai")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
