"""Merging a LoRA adapter that PEFT saved into its base model: W + scale · B A.

The schema lists every entry of adapter_config.json that changes results. An entry is computed, or it must have the
value that means "not used"; entries that this version does not know must be empty.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from gpt2core import files
from gpt2core.checkpoint.chat_template import read_chat_template
from gpt2core.checkpoint.config_json import MAX_CONFIG_BYTES, MODEL_FILES
from gpt2core.checkpoint.model_dir import ADAPTER_CONFIG, Model, load_with_tokenizer, read_safetensors, save_model
from gpt2core.checkpoint.peft_adapter import ADAPTER_WEIGHTS, PREFIX
from gpt2core.errors import UserError, schema_problem

# Of no effect on the merged weights: how the adapter was initialized, trained, chosen, and saved.
IGNORED = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "target_modules", "task_type",
}  # fmt: skip
# Initializations that change the base's weights, too.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
NAME = re.compile(r"(.+)\.lora_([AB])\.weight")


class _AdapterConfig(BaseModel):
    """Entries of adapter_config.json that change the merged weights."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    peft_type: Literal["LORA"]
    r: int = Field(ge=1, le=1 << 16)
    lora_alpha: float = Field(ge=-1e6, le=1e6)
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    fan_in_fan_out: bool = True  # how PEFT found the base's matrices; here they are known
    bias: Literal["none"] = "none"

    def scale(self, layer: str, rank: int) -> float:
        """Return the factor of B A for a layer: alpha / rank, or alpha / √rank (Kalajdzievski 2023)."""
        alpha = _by_pattern(self.alpha_pattern, layer, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, layer: str) -> int:
        """Return the rank of a layer's adapter."""
        return int(_by_pattern(self.rank_pattern, layer, self.r))


def _by_pattern(patterns: dict[str, Any], layer: str, default: float) -> float:
    """Return the value of the first pattern at the end of a layer's name, as PEFT does."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def merge(base: str | os.PathLike[str], adapter: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write a model directory with an adapter's matrices added to the base's weights.

    Args:
        base: model directory of the base, with a tokenizer.
        adapter: directory with adapter_config.json and adapter_model.safetensors, by PEFT or this project.
        out: becomes the model directory; an existing one is replaced.

    Raises:
        UserError: a directory is damaged, the adapter does not fit the base, or it has something that is not computed.
    """
    base, adapter, out = Path(base), Path(adapter), Path(out)
    for source in (base, adapter):
        files.check_out_dir(source, out, "model directory", MODEL_FILES)
    config = _read_config(adapter / ADAPTER_CONFIG)
    weights = adapter / ADAPTER_WEIGHTS
    model, tokenizer = load_with_tokenizer(base)
    _add(model, read_safetensors(weights), config, weights)
    template = read_chat_template(adapter) or read_chat_template(base)
    save_model(out, model, tokenizer, chat_template=template)


def _read_config(path: Path) -> _AdapterConfig:
    if not path.exists():
        raise UserError(f"{path}: no such file; a directory that PEFT saved is needed, such as models/instruct-adapter")
    content = files.read_json(path, MAX_CONFIG_BYTES)
    try:
        config = _AdapterConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {schema_problem(error)}") from None
    for key, value in (config.model_extra or {}).items():
        if value and key not in IGNORED:
            raise UserError(f"{path}: {key}: {value!r:.40} is not supported; merge with PEFT: merge_and_unload()")
    start = content.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise UserError(f"{path}: init_lora_weights: {start!r:.40} also changed the base; merge with PEFT")
    for patterns in (config.rank_pattern, config.alpha_pattern):
        for pattern in patterns:
            _check_pattern(pattern, path)
    return config


def _check_pattern(pattern: str, path: Path) -> None:
    """Refuse a pattern that is more than names and wildcards; others can take forever."""
    n_repeated = len(re.findall(r"[*+]", pattern))
    if not re.fullmatch(r"[\w.^$|()*+\\-]{1,200}", pattern) or re.search(r"\)[*+]", pattern) or n_repeated > 2:
        raise UserError(f"{path}: the pattern {pattern!r:.60} is not supported; name layers, such as h.0.attn.c_attn")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{path}: {pattern!r:.60} is no pattern ({error})") from None


@torch.no_grad()
def _add(model: Model, tensors: dict[str, Tensor], config: _AdapterConfig, where: Path) -> None:
    """Add the adapters of all layers to a model in place."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = NAME.fullmatch(name.removeprefix(PREFIX))
        if not match:
            raise UserError(f"{where}: {name!r:.80} is not a matrix of a linear layer's adapter; merge with PEFT")
        layers.setdefault(match[1], {})[match[2]] = tensor
    if not layers:
        raise UserError(f"{where}: has no matrices")
    modules = dict(model.named_modules())
    for layer, pair in layers.items():
        name = layer if layer in modules else f"transformer.{layer}"  # PEFT on a GPT2Model, which has no head
        module = modules.get(name)
        if not isinstance(module, torch.nn.Linear):
            raise UserError(f"{where}: {layer!r:.80} is no linear layer of the base")
        if name == "lm_head" and model.config.tie_word_embeddings:
            raise UserError(f"{where}: adapts lm_head, which the base shares with its embedding; save the base untied")
        if pair.keys() != {"A", "B"}:
            raise UserError(f"{where}: {layer!r:.80} has only one of lora_A and lora_B")
        A, B = pair["A"].float(), pair["B"].float()  # [rank, in], [out, rank]
        rank, expected = len(A), config.rank(layer)
        weight = module.weight  # [out, in]
        if rank != expected or B.shape != (len(weight), rank) or A.shape != (rank, weight.size(1)):
            raise UserError(
                f"{where}: {layer!r:.80} has lora_A {list(A.shape)} and lora_B {list(B.shape)}; a weight "
                f"{list(weight.shape)} and rank {expected} need [{expected}, {weight.size(1)}] and "
                f"[{len(weight)}, {expected}]"
            )
        weight += B @ A * config.scale(layer, rank)
        if not bool(weight.isfinite().all()):
            raise UserError(f"{where}: {layer!r:.80} makes weights with NaN or infinity; the adapter is damaged")
