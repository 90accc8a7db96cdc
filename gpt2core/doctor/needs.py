"""Memory and disk that the params need, compared with what is free on this machine."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import gpt2core
from gpt2core import files, runtime
from gpt2core.checkpoint.config_json import read_config_json
from gpt2core.config.presets import PRESETS
from gpt2core.doctor import Finding, stores
from gpt2core.errors import UserError
from gpt2core.params import Params

CHARACTER_VOCABULARY = 100
GPT2_VOCABULARY = 50_257
GENERATED_BYTES = 20 << 20  # approximate size of the embedded sources
CHECKPOINTS = 2  # per training; each holds the weights and AdamW's two moments
WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4": 0.5}
TRAINED_BLOCKS = {"head": 0, "lora": 0, "last_block": 1, "last_two_blocks": 2}  # otherwise all


def base_sizes(name: str, params: Params, root: Path) -> dict[str, int]:
    """Return n_layer, n_head, n_embd, n_positions, and vocab_size of a base model.

    Raises:
        UserError: the user's own directory is missing or holds no model.
    """
    if name == "pretrained" and params.pretrain.has_base:
        sizes = base_sizes(params.pretrain.base, params, root)
        return sizes | {"n_positions": params.pretrain.n_positions or sizes["n_positions"]}
    if name == "pretrained":
        vocabulary = {"bpe": params.tokenizer.vocab_size, "gpt2": GPT2_VOCABULARY, "char": CHARACTER_VOCABULARY}
        return {**params.pretrain.sizes(), "vocab_size": vocabulary[params.tokenizer.kind]}
    if name == "openai/tiny":
        hparams = files.read_json(Path(gpt2core.__file__).with_name("assets") / "openai-tiny/hparams.json")
        sizes = {key: hparams[key] for key in ("n_layer", "n_head", "n_embd")}
        return {**sizes, "n_positions": hparams["n_ctx"], "vocab_size": hparams["n_vocab"]}
    size = name.removeprefix("openai/")
    if size in PRESETS:
        return {**PRESETS[size], "vocab_size": GPT2_VOCABULARY}
    described = read_config_json(root / "models" / name / "config.json").config
    return {key: getattr(described, key) for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}


def block_parameters(sizes: dict[str, int]) -> int:
    """Return the number of parameters of one block: matrices of 12 C², 13 C biases and norms."""
    c = sizes["n_embd"]
    return 12 * c * c + 13 * c


def parameters(sizes: dict[str, int]) -> int:
    """Return the number of parameters of a GPT-2 with a tied head: embeddings, blocks, the last norm."""
    c = sizes["n_embd"]
    return (sizes["vocab_size"] + sizes["n_positions"]) * c + sizes["n_layer"] * block_parameters(sizes) + 2 * c


def state_bytes(sizes: dict[str, int], trainable: str, base_dtype: str = "float32") -> float:
    """Return the bytes of all weights, and of gradients and AdamW's two moments of those that are trained.

    `trainable` and `base_dtype`, the storage of the blocks' weights, are as in params.yaml.
    """
    block = block_parameters(sizes)
    blocks = sizes["n_layer"] * block
    n_trained = TRAINED_BLOCKS.get(trainable, sizes["n_layer"]) * block
    if trainable == "all":
        n_trained = parameters(sizes)
    return 4 * (parameters(sizes) - blocks) + WEIGHT_BYTES[base_dtype] * blocks + 3 * 4 * n_trained


def activation_bytes(sizes: dict[str, int], n_tokens: int, checkpointing: bool) -> int:
    """Return the bytes that a micro-batch keeps for the backward pass, at least; see scripts/scaling.py."""
    c, n_layer = sizes["n_embd"], sizes["n_layer"]
    block = 36 * c + 4 * sizes["n_head"] + 16
    return n_tokens * (4 * c * n_layer + block if checkpointing else n_layer * block)


def training_bytes(params: Params, root: Path) -> dict[str, float]:
    """Return the least memory that each training takes, in bytes, by stage. Raises UserError if a base is missing.

    Activations are counted where the params alone decide the number of tokens, which is in pretraining.
    """
    pretrain, classify, instruct = params.pretrain, params.finetune_classify, params.finetune_instruct
    sizes = base_sizes("pretrained", params, root)
    n_tokens = pretrain.batch_size * pretrain.context
    base_dtype = instruct.lora_base_dtype if instruct.trainable == "lora" else "float32"
    return {
        "pretrain": state_bytes(sizes, pretrain.trainable)
        + activation_bytes(sizes, n_tokens, pretrain.activation_checkpointing),
        "finetune-classify": state_bytes(base_sizes(classify.base, params, root), classify.trainable),
        "finetune-instruct": state_bytes(base_sizes(instruct.base, params, root), instruct.trainable, base_dtype),
    }


def memory(params: Params, root: Path) -> Iterator[Finding]:
    """Check that each training's weights, gradients, and optimizer state fit into memory."""
    try:
        needed = training_bytes(params, root)
    except UserError as error:
        yield Finding("warning", "memory", f"not estimated: {error}", "name a base that exists")
        return
    free = free_bytes()
    for stage, n_bytes in needed.items():
        launcher = getattr(params, stage.replace("-", "_")).launcher
        several = "; torchrun divides it" if launcher != "python" else ""
        fits = n_bytes <= free
        remedy = "a smaller batch_size or model, or trainable: lora for a fine-tuning"
        yield Finding(
            "ok" if fits else "problem", "memory",
            f"{stage} takes at least {gigabytes(n_bytes)}, {gigabytes(free)} are free{several}", "" if fits else remedy,
        )  # fmt: skip


def free_bytes() -> int:
    """Return the free memory in bytes: the GPU's, or the machine's within the limit of the control group."""
    if runtime.device().type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        return min(free, max(0, int(limit) - used)) if limit != "max" else free
    except (OSError, ValueError):
        return free


def disk(params: Params, root: Path) -> Iterator[Finding]:
    """Check that downloads, outputs, and checkpoints fit on the disk; DVC's cache holds each output a second time."""
    fetched = sum(file.size_bytes or 0 for asset in stores.needed(params) for file in asset.files)
    weights: list[int] = []
    for name in ("pretrained", params.finetune_classify.base, params.finetune_instruct.base):
        with contextlib.suppress(UserError):
            weights.append(4 * parameters(base_sizes(name, params, root)))
    openai = sum(4 * parameters(base_sizes(f"openai/{size}", params, root)) for size in params.openai.sizes)
    outputs = GENERATED_BYTES + 2 * fetched + 2 * openai + sum(weights)  # fetched: as files, and as tokens
    needed = 2 * outputs + CHECKPOINTS * 3 * max(weights, default=0)
    free = shutil.disk_usage(root).free
    text = f"these params write up to {gigabytes(needed)}, {gigabytes(free)} are free"
    if needed > free:
        yield Finding("problem", "disk", text, f"free some: dvc gc --workspace, or another disk for {root}")
    else:
        yield Finding("ok", "disk", text)


def gigabytes(n_bytes: float) -> str:
    """Return a number of bytes in GB.

    >>> gigabytes(14.2e9), gigabytes(3e8)
    ('14.2 GB', '0.3 GB')
    """
    return f"{n_bytes / 1e9:.1f} GB"
