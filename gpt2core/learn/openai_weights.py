"""OpenAI's weights in `GPTModel`, through the nested dict of arrays that the usual teaching code passes around."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2core import files
from gpt2core.checkpoint.names import check_shapes
from gpt2core.checkpoint.openai import CHECKPOINT_PREFIX, read_hparams
from gpt2core.checkpoint.tf_checkpoint import TFCheckpoint
from gpt2core.learn.gpt import GPTModel
from gpt2core.sources import registry
from gpt2core.sources.download import downloads_dir, fetch_all

# OpenAI's names in a block, and those of `TransformerBlock`. Matrices (`w`) are transposed; c_attn is q, k, v in one.
BLOCK = {
    "ln_1/g": "norm1.scale", "ln_1/b": "norm1.shift", "ln_2/g": "norm2.scale", "ln_2/b": "norm2.shift",
    "attn/c_proj/w": "att.out_proj.weight", "attn/c_proj/b": "att.out_proj.bias",
    "mlp/c_fc/w": "ff.layers.0.weight", "mlp/c_fc/b": "ff.layers.0.bias",
    "mlp/c_proj/w": "ff.layers.2.weight", "mlp/c_proj/b": "ff.layers.2.bias",
}  # fmt: skip


def download_and_load_gpt2(
    model_size: str, models_dir: str | os.PathLike[str]
) -> tuple[dict[str, int], dict[str, Any]]:
    """Download OpenAI's checkpoint of a size to `models_dir/model_size`, unless it is there, and read it.

    Args:
        model_size: 124M, 355M, 774M, 1558M, or tiny, which is in the package.
        models_dir: the folder of all sizes.

    Returns:
        `hparams.json`, and the arrays: `wte` [V, C], `wpe` [T, C], `g` and `b` of the final norm [C], and a list
        `blocks` of nested dicts, such as `params["blocks"][0]["attn"]["c_attn"]["w"]`, [C, 3C].

    Raises:
        UserError: there is no such size, no network, or a file is damaged.
    """
    asset = registry.find("openai", f"openai-{model_size}")
    folder = Path(models_dir) / model_size
    if not all((folder / file.name).is_file() for file in asset.files):
        names = [file.name for file in asset.files]
        files.check_out_dir(downloads_dir(), folder, "folder of OpenAI's files", names)  # fetch_all replaces it
        fetch_all(asset, folder)
    n_layers = read_hparams(folder / "hparams.json").n_layer
    checkpoint = TFCheckpoint(folder / CHECKPOINT_PREFIX)
    params: dict[str, Any] = {"blocks": [{} for _ in range(n_layers)]}
    for name in checkpoint:
        first, *path = name.split("/")[1:]  # model/wte, model/ln_f/g, model/h0/attn/c_attn/w
        array = checkpoint[name]
        if not path:
            params[first] = array
        elif first == "ln_f":
            params[path[0]] = array
        else:
            part, *inner = path[:-1]
            target = params["blocks"][int(first[1:])].setdefault(part, {})
            for key in inner:
                target = target.setdefault(key, {})
            target[path[-1]] = array[0] if path[-1] == "w" else array  # [1, in, out] -> [in, out]
    return files.read_json(folder / "hparams.json"), params


def load_weights_into_gpt(gpt: GPTModel, params: dict[str, Any]) -> None:
    """Copy OpenAI's weights into a model of the same sizes with `qkv_bias`; the output layer is the token embedding.

    Args:
        gpt: the model.
        params: from `download_and_load_gpt2`.

    Raises:
        UserError: names a tensor that the model or `params` lacks, or whose shape differs.
    """
    state = {
        "tok_emb.weight": params["wte"], "pos_emb.weight": params["wpe"], "out_head.weight": params["wte"],
        "final_norm.scale": params["g"], "final_norm.shift": params["b"],
    }  # fmt: skip
    for layer, block in enumerate(params["blocks"]):
        for path, name in BLOCK.items():
            array = functools.reduce(dict.__getitem__, path.split("/"), block)
            state[f"trf_blocks.{layer}.{name}"] = array.T if path.endswith("/w") else array
        for kind, array in (("weight", block["attn"]["c_attn"]["w"].T), ("bias", block["attn"]["c_attn"]["b"])):
            for name, part in zip(("W_query", "W_key", "W_value"), np.split(array, 3), strict=True):
                state[f"trf_blocks.{layer}.att.{name}.{kind}"] = part
    expected = {name: tuple(tensor.shape) for name, tensor in gpt.state_dict().items()}
    check_shapes({name: array.shape for name, array in state.items()}, expected, "params")
    gpt.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
