"""OpenAI's GPT-2 directories (a TensorFlow checkpoint, `hparams.json`, the BPE) as Hugging Face model directories."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, TensorSpec, serialize_file

from gpt2core import files, runtime
from gpt2core.checkpoint import names
from gpt2core.checkpoint.config_json import GENERATION_CONFIG, MODEL_FILES, config_json, generation_config_json
from gpt2core.checkpoint.model_card import ModelCard, write_model_card
from gpt2core.checkpoint.tf_checkpoint import TFCheckpoint
from gpt2core.errors import UserError
from gpt2core.model import GPTConfig
from gpt2core.tokenizer import Tokenizer, read_bpe

# The files of each size at OpenAI. `checkpoint` and `.meta` are TensorFlow's own; converting does not read them.
FILES = (
    "checkpoint",
    "encoder.json",
    "hparams.json",
    "model.ckpt.data-00000-of-00001",
    "model.ckpt.index",
    "model.ckpt.meta",
    "vocab.bpe",
)
CHECKPOINT_PREFIX = "model.ckpt"

# Dtypes that weights may have; OpenAI's are float32.
FLOATS = ("float32", "float16", "bfloat16")

# hparams.json's keys and GPT2Config's.
HPARAMS = {
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
}


def from_openai(checkpoint: TFCheckpoint, config: GPTConfig) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return OpenAI's tensors under transformers' names and shapes: views of the memory map, with checked checksums.

    Returns:
        The arrays (bfloat16 as uint16, its bits), and the dtype of each.

    Raises:
        UserError: a tensor is unknown, missing, damaged, or of another shape than `config` says.
    """
    # This message says more than a list of missing names, and the check bounds the table.
    layers = {match[1] for name in checkpoint if (match := re.match(r"model/h(\d+)/", name))}
    if len(layers) != config.n_layer:
        raise UserError(
            f"{checkpoint.index_path}: has {len(layers)} blocks, hparams.json says n_layer {config.n_layer}"
        )
    rows = names.table(config)
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    names.check_shapes(shapes, {row.openai: row.openai_shape for row in rows}, checkpoint.index_path)
    for name, entry in checkpoint.entries.items():
        if entry.dtype not in FLOATS:
            raise UserError(
                f"{checkpoint.index_path}: tensor {name!r} is {entry.dtype}, must be one of {', '.join(FLOATS)}"
            )
    dtypes = {row.hf: checkpoint.entries[row.openai].dtype for row in rows}
    verified = runtime.progress(rows, what="verify", unit="tensor")
    return {row.hf: checkpoint[row.openai].reshape(row.shape) for row in verified}, dtypes


def read_hparams(path: str | os.PathLike[str]) -> GPTConfig:
    """Read OpenAI's `hparams.json`; dropout and the rest are the paper's.

    Raises:
        UserError: names the key that is missing or wrong.
    """
    hparams = files.read_json(path)
    if not isinstance(hparams, dict):
        raise UserError(f"{path}: must be a JSON object with {', '.join(HPARAMS)}")
    for key in HPARAMS:
        if type(hparams.get(key)) is not int or hparams[key] < 1:
            raise UserError(f"{path}: {key} must be a positive whole number, found {hparams.get(key)!r}")
    sizes = {name: hparams[key] for key, name in HPARAMS.items()}
    try:
        return GPTConfig(**sizes, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_hparams(path: str | os.PathLike[str], config: GPTConfig) -> None:
    """Write OpenAI's `hparams.json`."""
    files.write_text(path, json.dumps({key: getattr(config, name) for key, name in HPARAMS.items()}))


def write_bpe(folder: str | os.PathLike[str], tokenizer: Tokenizer) -> None:
    """Write OpenAI's `encoder.json` and `vocab.bpe`: GPT-2's two files under their first names, the former in ASCII."""
    folder = Path(folder)
    tokenizer.save(folder)
    files.write_text(folder / "encoder.json", json.dumps(files.read_json(folder / "vocab.json")))
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    for name in ("vocab.json", "tokenizer.json", "tokenizer_config.json"):  # transformers' files, not OpenAI's
        (folder / name).unlink()


def convert(src_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str], card: ModelCard | None = None) -> None:
    """Convert an OpenAI directory to a model directory, atomically; the same input gives the same bytes.

    Every tensor's CRC-32C is checked. The weights go from map to file without a copy in memory. Each keeps its dtype;
    if dtypes differ, `config.json` says float32, to which transformers then converts them.

    Args:
        src_dir: holds OpenAI's `FILES`.
        out_dir: becomes the model directory; an existing model directory is replaced.
        card: its model card, if any.

    Raises:
        UserError: a file is missing or damaged, or the files are not of one model.
    """
    src, out = Path(src_dir), Path(out_dir)
    if not src.is_dir():
        raise UserError(f"{src}: no such directory; it must hold OpenAI's files: {', '.join(FILES)}")
    files.check_out_dir(src, out, "model directory", MODEL_FILES)
    config = read_hparams(src / "hparams.json")
    tokenizer = read_bpe(src / "encoder.json", src / "vocab.bpe")
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{src / 'hparams.json'}: n_vocab is {config.vocab_size}, encoder.json has {tokenizer.vocab_size} tokens"
        )
    tensors, dtypes = from_openai(TFCheckpoint(src / CHECKPOINT_PREFIX), config)
    specs = {
        name: TensorSpec(dtype=dtypes[name], shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in tensors.items()
    }
    dtype = dtypes["transformer.wte.weight"] if len(set(dtypes.values())) == 1 else "float32"
    try:
        with files.atomic_dir(out) as folder:
            with files.atomic_path(folder / "model.safetensors") as path:  # for the mode: safetensors gives 0600
                serialize_file(specs, path, metadata={"format": "pt"})
            files.write_json(folder / "config.json", config_json(config, tokenizer.eot_id, dtype=dtype))
            files.write_json(folder / GENERATION_CONFIG, generation_config_json(tokenizer.eot_id))
            tokenizer.save(folder, model_max_length=config.n_positions)
            if card:
                write_model_card(folder, card)
    except SafetensorError as error:
        raise UserError(f"{out}: model.safetensors cannot be written ({error}); is the disk full?") from None
    except OSError as error:
        if error.errno in files.DISK_FULL:
            raise
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
