"""OpenAI's GPT-2 directories (a TensorFlow checkpoint, `hparams.json`, the BPE) as Hugging Face model directories."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, TensorSpec, serialize_file

from gpt2core import files, runtime
from gpt2core.checkpoint.config_json import config_json
from gpt2core.checkpoint.tf_checkpoint import TFCheckpoint
from gpt2core.errors import UserError
from gpt2core.model import GPTConfig
from gpt2core.tokenizer import Tokenizer

# What OpenAI publishes for each size. `checkpoint` and `.meta` are TensorFlow's own; converting does not read them.
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

# What weights may be; OpenAI's are float32.
FLOATS = ("float32", "float16", "bfloat16")

# hparams.json's keys and GPT2Config's.
HPARAMS = {
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
}

# Of each block: OpenAI's name, transformers' name, and the shape in units of the width C.
BLOCK: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("ln_1/g", "ln_1.weight", (1,)),
    ("ln_1/b", "ln_1.bias", (1,)),
    ("attn/c_attn/w", "attn.c_attn.weight", (1, 3)),
    ("attn/c_attn/b", "attn.c_attn.bias", (3,)),
    ("attn/c_proj/w", "attn.c_proj.weight", (1, 1)),
    ("attn/c_proj/b", "attn.c_proj.bias", (1,)),
    ("ln_2/g", "ln_2.weight", (1,)),
    ("ln_2/b", "ln_2.bias", (1,)),
    ("mlp/c_fc/w", "mlp.c_fc.weight", (1, 4)),
    ("mlp/c_fc/b", "mlp.c_fc.bias", (4,)),
    ("mlp/c_proj/w", "mlp.c_proj.weight", (4, 1)),
    ("mlp/c_proj/b", "mlp.c_proj.bias", (1,)),
)


@dataclass(frozen=True)
class Row:
    """One tensor under both names. Layouts agree, but OpenAI's matrices are convolutions of width 1: [1, in, out]."""

    openai: str
    hf: str
    openai_shape: tuple[int, ...]
    hf_shape: tuple[int, ...]


def table(config: GPTConfig) -> list[Row]:
    """All tensors of a GPT-2 of this shape, in the order of the model. Used in both directions."""
    V, T, C = config.vocab_size, config.n_positions, config.n_embd
    rows = [
        Row("model/wte", "transformer.wte.weight", (V, C), (V, C)),
        Row("model/wpe", "transformer.wpe.weight", (T, C), (T, C)),
    ]
    for layer in range(config.n_layer):
        for openai, hf, factors in BLOCK:
            shape = tuple(factor * C for factor in factors)
            openai_shape = (1, *shape) if openai.endswith("/w") else shape
            rows.append(Row(f"model/h{layer}/{openai}", f"transformer.h.{layer}.{hf}", openai_shape, shape))
    return [
        *rows,
        Row("model/ln_f/g", "transformer.ln_f.weight", (C,), (C,)),
        Row("model/ln_f/b", "transformer.ln_f.bias", (C,), (C,)),
    ]


def from_openai(checkpoint: TFCheckpoint, config: GPTConfig) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """OpenAI's tensors under transformers' names and shapes: views of the memory map, their checksums proven.

    Returns:
        The arrays (bfloat16 as uint16, its bits), and the dtype of each.

    Raises:
        UserError: a tensor is unknown, missing, damaged, or not of the shape that `config` gives it.
    """
    # First, because it says more than the hundreds of names that would be missing (and bounds the table).
    layers = {match[1] for name in checkpoint if (match := re.match(r"model/h(\d+)/", name))}
    if len(layers) != config.n_layer:
        raise UserError(
            f"{checkpoint.index_path}: has {len(layers)} blocks, hparams.json says n_layer {config.n_layer}"
        )
    rows = table(config)
    found = {name: entry.shape for name, entry in checkpoint.entries.items()}
    check_shapes(found, {row.openai: row.openai_shape for row in rows}, checkpoint.index_path)
    for name, entry in checkpoint.entries.items():
        if entry.dtype not in FLOATS:
            raise UserError(
                f"{checkpoint.index_path}: tensor {name!r} is {entry.dtype}, must be one of {', '.join(FLOATS)}"
            )
    dtypes = {row.hf: checkpoint.entries[row.openai].dtype for row in rows}
    verified = runtime.progress(rows, what="verify", unit="tensor")
    return {row.hf: checkpoint[row.openai].reshape(row.hf_shape) for row in verified}, dtypes


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str | os.PathLike[str]
) -> None:
    """Raise UserError if tensors are missing or surplus, or have other shapes; `where` names their file."""
    if missing := expected.keys() - found.keys():
        raise UserError(f"{where}: missing tensors: {_some(missing)}")
    if surplus := found.keys() - expected.keys():
        raise UserError(f"{where}: tensors that are not part of this GPT-2: {_some(surplus)}")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise UserError(
                f"{where}: tensor {name!r} has shape {list(found[name])}, the model's sizes make it {list(shape)}; "
                "weights and sizes (hparams.json, config.json) are not of one model"
            )


def _some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def read_hparams(path: str | os.PathLike[str]) -> GPTConfig:
    """Read OpenAI's `hparams.json`; dropout and the rest are the paper's. Raises UserError that names the key."""
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
    for name in ("vocab.json", "tokenizer_config.json"):  # transformers' files, not OpenAI's
        (folder / name).unlink()


def convert(src_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> None:
    """Turn an OpenAI directory into a model directory, whole or not at all; same input, same bytes.

    Every tensor's CRC-32C is checked. The weights go from map to file without a copy in memory. Each keeps its dtype;
    where they differ, `config.json` says float32, which transformers then makes of all.

    Args:
        src_dir: holds OpenAI's `FILES`.
        out_dir: becomes the model directory; a model directory that is there is replaced.

    Raises:
        UserError: a file is missing or damaged, or the files are not of one model.
    """
    src, out = Path(src_dir), Path(out_dir)
    if not src.is_dir():
        raise UserError(f"{src}: no such directory; it must hold OpenAI's files: {', '.join(FILES)}")
    check_out_dir(src, out, "model directory", marker="config.json")
    config = read_hparams(src / "hparams.json")
    tokenizer = Tokenizer.from_files(src / "encoder.json", src / "vocab.bpe")
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
            tokenizer.save(folder, model_max_length=config.n_positions)
    except SafetensorError as error:
        raise UserError(f"{out}: model.safetensors cannot be written ({error}); is the disk full?") from None
    except OSError as error:
        if error.errno in files.DISK_FULL:
            raise
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None


def check_out_dir(src: Path, out: Path, kind: str, marker: str) -> None:
    """Refuse an output that holds its source, or takes the place of somebody's folder of other things.

    Args:
        src: what is read.
        out: what will be written.
        kind: of what `out` becomes, which may be there already.
        marker: the file by which that is known.
    """
    if out.resolve() == src.resolve() or out.resolve() in src.resolve().parents:
        raise UserError(f"{out}: holds the source {src}, which writing would delete; choose another directory")
    if out.exists() and not (out.is_dir() and ((out / marker).exists() or not any(out.iterdir()))):
        raise UserError(f"{out}: exists and is no {kind}; choose another name or remove it")
