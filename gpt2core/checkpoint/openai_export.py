"""Export of a model directory to OpenAI's format, which TensorFlow and OpenAI's own code read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt2core import files, runtime
from gpt2core.checkpoint import names
from gpt2core.checkpoint.config_json import Described
from gpt2core.checkpoint.model_dir import read_described, read_tensors
from gpt2core.checkpoint.openai import CHECKPOINT_PREFIX, FILES, write_bpe, write_hparams
from gpt2core.checkpoint.tf_writer import write_checkpoint, write_saver_files
from gpt2core.errors import UserError
from gpt2core.model import GPTConfig
from gpt2core.tokenizer import has_tokenizer, load_tokenizer

EPSILON = 1e-5  # of the layer norms, a constant in OpenAI's code


def export(model_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> None:
    """Write OpenAI's seven files of a language model, atomically; one tensor in memory at a time.

    The weights become float32, like OpenAI's. `model.ckpt.meta` has no graph. Converting the result gives the same
    `model.safetensors` and tokenizer again; dropout rates are not part of OpenAI's format.

    Args:
        model_dir: ours, or one that transformers saved, with a tokenizer.
        out_dir: becomes OpenAI's directory; an existing one is replaced.

    Raises:
        UserError: the model directory is damaged, or OpenAI's format cannot express the model.
    """
    src, out = Path(model_dir), Path(out_dir)
    described = read_described(src)
    files.check_out_dir(src, out, "directory in OpenAI's format", FILES)
    _check_expressible(src, described)
    tokenizer = load_tokenizer(src)
    if tokenizer.vocab_size != described.config.vocab_size:
        raise UserError(
            f"{src}: the tokenizer has {tokenizer.vocab_size} tokens and the model {described.config.vocab_size}; "
            "OpenAI's format needs as many of one as of the other"
        )
    if tokenizer.add_prefix_space:
        raise UserError(f"{src}: its tokenizer has add_prefix_space, which OpenAI's format cannot express")
    tensors = openai_tensors(src, described.config)
    try:
        with files.atomic_dir(out) as folder:
            write_checkpoint(folder / CHECKPOINT_PREFIX, tensors)
            write_saver_files(folder, CHECKPOINT_PREFIX, tag="weights only")
            write_hparams(folder / "hparams.json", described.config)
            write_bpe(folder, tokenizer)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None


def openai_tensors(model_dir: Path, config: GPTConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Return the weights of a language model under OpenAI's names and shapes, in float32, one at a time.

    Raises:
        UserError: tensors are missing, unknown, or of other shapes. Raised by the call, not by the iterator.
    """
    tensors, where = read_tensors(model_dir)
    rows = names.table(config)
    tensors = names.canonical(tensors, rows, where)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names.check_shapes(shapes, {row.hf: row.shape for row in rows}, where)
    written = runtime.progress(rows, what="export", unit="tensor")
    return ((row.openai, tensors[row.hf].float().reshape(row.openai_shape).numpy()) for row in written)


def _check_expressible(src: Path, described: Described) -> None:
    where = src / "config.json"
    if described.is_classifier:
        raise UserError(f"{where}: a classifier; OpenAI's format holds language models only")
    if not described.config.tie_word_embeddings:
        raise UserError(f"{where}: tie_word_embeddings is false; OpenAI's format has no place for a head of its own")
    if described.config.layer_norm_epsilon != EPSILON:
        raise UserError(
            f"{where}: layer_norm_epsilon is {described.config.layer_norm_epsilon}; OpenAI's format means {EPSILON}"
        )
    if not has_tokenizer(src):
        raise UserError(f"{src}: has no vocab.json and merges.txt, which OpenAI's encoder.json and vocab.bpe come from")
