"""Verification of a model directory or OpenAI's checkpoint: tensors, shapes, values, and the tokenizer."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2core import runtime
from gpt2core.checkpoint import names, openai
from gpt2core.checkpoint.config_json import TRANSFORMERS_TYPE
from gpt2core.checkpoint.model_dir import read_described, read_tensors, too_many_tokens, vocabulary_problems
from gpt2core.checkpoint.tf_checkpoint import CheckpointError, TFCheckpoint
from gpt2core.errors import UserError
from gpt2core.model import GPTConfig
from gpt2core.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, read_bpe
from gpt2core.tokenizer.byte_pair import is_part_of_character

LANGUAGE_MODEL, CLASSIFIER, OPENAI = "language model", "classifier", "OpenAI checkpoint"
LORA, UNKNOWN = "LoRA adapter", "unknown"
GPT2_BPE, BPE, CHARACTERS = "GPT-2's byte-level BPE", "byte-level BPE", "characters"
# SHA-256 of OpenAI's vocab.bpe.
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
FLOAT32_MAX = torch.finfo(torch.float32).max
PROBE = "Hello there, it's 12 o'clock!\n\n\tÜber 東京 🙂 "


@dataclass
class Report:
    """The result of `verify`. Values that could not be read are None.

    Args:
        path: of the directory.
        kind: language model, classifier, OpenAI checkpoint, LoRA adapter, or unknown.
        parameters: their number; a tied head counts once.
        layers: number of blocks.
        width: hidden size.
        heads: attention heads per block.
        context: number of positions.
        vocabulary: number of tokens of the model.
        dtype: of the weights; several if they differ.
        tokenizer: its type, None without one.
        labels: the classes of a classifier.
        transformers: whether transformers can open the directory.
        problems: a sentence for each part that is missing, damaged, or inconsistent.
    """

    path: str
    kind: str = UNKNOWN
    parameters: int | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    context: int | None = None
    vocabulary: int | None = None
    dtype: str | None = None
    tokenizer: str | None = None
    labels: list[str] | None = None
    transformers: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def set_sizes(self, config: GPTConfig) -> None:
        """Set the sizes of the model."""
        self.layers, self.width, self.heads = config.n_layer, config.n_embd, config.n_head
        self.context, self.vocabulary = config.n_positions, config.vocab_size


def verify(path: str | os.PathLike[str]) -> Report:
    """Read everything in a directory and report. Raises UserError only if the directory does not exist."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    report = Report(str(path))
    if (path / "adapter_config.json").exists():
        report.kind = LORA
        report.problems.append("a LoRA adapter is part of a model only, and cannot be verified alone")
    elif (path / "config.json").exists():
        _verify_model_dir(path, report)
    elif (path / "hparams.json").exists() or (path / f"{openai.CHECKPOINT_PREFIX}.index").exists():
        _verify_openai(path, report)
    else:
        report.problems.append("neither a model directory (config.json) nor OpenAI's checkpoint (hparams.json)")
    return report


def _verify_model_dir(path: Path, report: Report) -> None:
    try:
        described = read_described(path)
    except UserError as error:
        report.problems.append(str(error))
        return
    report.kind = CLASSIFIER if described.is_classifier else LANGUAGE_MODEL
    report.labels = list(described.labels) if described.labels is not None else None
    report.transformers = described.model_type == TRANSFORMERS_TYPE
    report.set_sizes(described.config)
    rows = names.table(described.config, described.labels)
    try:
        tensors, where = read_tensors(path)
        tensors = names.canonical(tensors, rows, where)
    except UserError as error:
        report.problems.append(str(error))
    else:
        _check_tensors(tensors, {row.hf: row.shape for row in rows}, where, report)
        report.problems += names.nonzero_biases(tensors, described.config, where)
    if not has_tokenizer(path):
        report.problems += [
            f"{path / name}: no such file, though {other} is here; the tokenizer is not whole"
            for name, other in (("vocab.json", "merges.txt"), ("merges.txt", "vocab.json"))
            if (path / other).exists()
        ]
    else:
        try:
            tokenizer = load_tokenizer(path)
            report.problems += vocabulary_problems(tokenizer, described, path)
            report.problems += [
                f"{path / 'config.json'}: {name}_token_id {token_id} is outside the vocabulary"
                for name, token_id in described.special_ids.items()
                if token_id >= described.config.vocab_size
            ]
            _check_tokenizer(tokenizer, path, report)
        except UserError as error:
            report.problems.append(str(error))


def _check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str, report: Report
) -> None:
    """Compare tensors with the expected shapes, look for NaN and infinity, and set number of parameters and dtype."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    report.problems += names.differences(shapes, expected, where)
    read = runtime.progress(tensors.items(), what="read", unit="tensor")
    bad = [name for name, tensor in read if not _is_finite(tensor)]
    report.problems += names.listed(bad, f"{where}: tensor {{}} has NaN or infinity")
    report.parameters = sum(tensor.numel() for tensor in tensors.values())
    report.dtype = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))


def _is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has no NaN or infinity, by its extremes, which needs no memory (NaN is both)."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(abs(extreme.item()) <= FLOAT32_MAX for extreme in tensor.aminmax())  # also of float64


def _check_tokenizer(tokenizer: Tokenizer, path: Path, report: Report) -> None:
    """Set the tokenizer's kind, and check that it decodes what it encodes."""
    report.tokenizer = tokenizer_kind(tokenizer)
    probe = PROBE
    if report.tokenizer == CHARACTERS:
        probe = "".join(_text(token) for token in sorted(tokenizer.ranks))
    elif missing := [byte for byte in range(256) if bytes([byte]) not in tokenizer.ranks]:
        report.problems.append(f"{path}: the tokenizer lacks {len(missing)} of the 256 bytes")
        return
    if tokenizer.decode(tokenizer.encode(probe)).removeprefix(" ") != probe.removeprefix(" "):
        report.problems.append(f"{path}: the tokenizer does not give a text back that it encodes")


def tokenizer_kind(tokenizer: Tokenizer) -> str:
    """Return the type of a tokenizer: GPT-2's, another byte-level BPE, or one token per character."""
    if all(map(is_part_of_character, tokenizer.ranks)):
        return CHARACTERS
    printable = tokenizer.id_to_token
    merges = [f"{printable[tokenizer.ranks[a]]} {printable[tokenizer.ranks[b]]}" for a, b in tokenizer.merges]
    digest = hashlib.sha256("\n".join(["#version: 0.2", *merges, ""]).encode()).hexdigest()
    return GPT2_BPE if digest == GPT2_MERGES_SHA256 else BPE


def _text(token: bytes) -> str:
    """Return a token's characters, or an empty text if it is a part of a character."""
    return token.decode(errors="ignore")


def _verify_openai(path: Path, report: Report) -> None:
    report.kind = OPENAI
    report.problems += [f"{path / name}: no such file" for name in openai.FILES if not (path / name).exists()]
    config = checkpoint = None
    try:
        config = openai.read_hparams(path / "hparams.json")
        report.set_sizes(config)
    except UserError as error:
        _add(report, error)
    try:
        checkpoint = TFCheckpoint(path / openai.CHECKPOINT_PREFIX)
    except UserError as error:
        _add(report, error)
    if checkpoint is not None:
        _check_checkpoint(checkpoint, config, report)
    if config is not None:
        try:
            tokenizer = read_bpe(path / "encoder.json", path / "vocab.bpe")
            report.problems += too_many_tokens(tokenizer, config.vocab_size, path)
            _check_tokenizer(tokenizer, path, report)
        except UserError as error:
            _add(report, error)


def _check_checkpoint(checkpoint: TFCheckpoint, config: GPTConfig | None, report: Report) -> None:
    """Check checksums, values, and, if the sizes are known, shapes."""
    entries = checkpoint.entries
    report.parameters = sum(math.prod(entry.shape) for entry in entries.values())
    report.dtype = ", ".join(sorted({entry.dtype for entry in entries.values()}))
    if config is not None and config.n_layer <= len(entries):  # a wrong number of layers may need a huge table
        expected = {row.openai: row.openai_shape for row in names.table(config)}
        shapes = {name: entry.shape for name, entry in entries.items()}
        report.problems += names.differences(shapes, expected, checkpoint.index_path)
    elif config is not None:
        report.problems.append(f"{checkpoint.index_path}: has {len(entries)} tensors for {config.n_layer} layers")
    for name, entry in runtime.progress(entries.items(), what="verify", unit="tensor"):
        try:
            array = checkpoint[name]
        except CheckpointError as error:
            report.problems.append(str(error))
            continue
        if entry.dtype == "bfloat16":
            array = (array.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is its upper half
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            report.problems.append(f"{checkpoint.shard_path(entry.shard)}: tensor {name!r} has NaN or infinity")


def _add(report: Report, error: UserError) -> None:
    """Add a problem, unless it is the missing file that is listed already."""
    if str(error) not in report.problems:
        report.problems.append(str(error))
