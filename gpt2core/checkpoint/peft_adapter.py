"""LoRA adapters as PEFT reads them: adapter_config.json and adapter_model.safetensors in their own directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import safetensors.torch
from torch import Tensor, nn

from gpt2core import files
from gpt2core.checkpoint.model_dir import ADAPTER_CONFIG
from gpt2core.model.lora import lora_layers

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of PEFT, before transformers' names
README = """\
A LoRA adapter (Hu et al. 2021) of {base}, for PEFT. `models/instruct` is that base with this adapter merged.

    model = transformers.AutoModelForCausalLM.from_pretrained("{base}")
    model = peft.PeftModel.from_pretrained(model, "{path}")

The base is named from the project's root: there `peft.AutoPeftModelForCausalLM.from_pretrained("{path}")` does both.
"""
NONE = "No adapter: the last fine-tuning was without one. `finetune_instruct.trainable: lora` makes one.\n"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Args:
        tensors: its matrices, under PEFT's names.
        rank, alpha, dropout: hyperparameters of LoRA.
        targets: names of the adapted layers in a block.
    """

    tensors: dict[str, Tensor]
    rank: int
    alpha: float
    dropout: float
    targets: Sequence[str]


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of A, [rank, in], and B, [out, rank], of each adapted layer, under PEFT's names."""
    tensors = {}
    for name, layer in lora_layers(model):
        for key in ("lora_A", "lora_B"):
            tensors[f"{PREFIX}{name}.{key}.weight"] = getattr(layer, key).detach().float().cpu().clone()
    return tensors


def save_adapter(path: str | os.PathLike[str], adapter: Adapter | None, base: str) -> None:
    """Write the adapter's directory, atomically.

    Args:
        path: the directory; an existing one is replaced.
        adapter: the adapter; None writes a README that says that there is none.
        base: path of the base model's directory, as PEFT will look for it.
    """
    with files.atomic_dir(path) as folder:
        if adapter is None:
            files.write_text(folder / "README.md", NONE)
            return
        with files.atomic_path(folder / ADAPTER_WEIGHTS) as file:  # for its mode, as in model_dir.py
            safetensors.torch.save_file(adapter.tensors, file, metadata={"format": "pt"})
        files.write_json(
            folder / ADAPTER_CONFIG,
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base,
                "r": adapter.rank,
                "lora_alpha": int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
                "lora_dropout": adapter.dropout,
                "target_modules": sorted(adapter.targets),
                "fan_in_fan_out": True,  # transformers holds GPT-2's linear layers as [in, out]
                "bias": "none",
                "inference_mode": True,
            },
        )
        files.write_text(folder / "README.md", README.format(base=base, path=os.fspath(path)))
