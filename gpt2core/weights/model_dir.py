"""Model directories: `config.json`, `model.safetensors` and the tokenizer, as transformers reads them. No pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer import Tokenizer
from gpt2core.weights import names

Model = GPT | GPTClassifier
# transformers' spellings of the tanh GELU, the only one GPT-2 was trained with.
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


def save_model(
    path: str | os.PathLike[str], model: Model, tokenizer: Tokenizer, *, chat_template: str | None = None
) -> None:
    """Write a model directory, whole or not at all; same weights, same bytes.

    Args:
        path: the directory; one that is there is replaced.
        model: its weights are written in float32.
        tokenizer: the one it was trained with.
        chat_template: the Jinja form of its prompt, for an instruction-tuned model.
    """
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}")
    is_classifier = isinstance(model, GPTClassifier)
    head = names.head_name(model.config, is_classifier)
    state = {name: tensor.float().cpu() for name, tensor in model.state_dict().items()}
    with files.atomic_dir(path) as folder:
        tensors = names.to_hf(state, model.config, head)
        with files.atomic_path(folder / "model.safetensors") as file:  # for its mode: safetensors gives 0600
            safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
        config = hf_config(model.config, tokenizer.eot_id)
        files.write_json(folder / "config.json", config | _classifier_keys(model.labels) if is_classifier else config)
        extra = {"chat_template": chat_template} if chat_template else None
        tokenizer.save(folder, model_max_length=model.config.n_positions, extra=extra)


def hf_config(config: GPTConfig, eot_id: int) -> dict[str, Any]:
    """A language model's `config.json` (transformers' GPT2Config, and our `qkv_bias`)."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "pad_token_id": eot_id,
        "dtype": "float32",
        **config.to_dict(),
    }


def _classifier_keys(labels: tuple[str, ...]) -> dict[str, Any]:
    """What a classifier's `config.json` says otherwise."""
    return {
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    dropout: float | None = None,
) -> tuple[Model, Tokenizer | None]:
    """Read a model directory, ours or one that transformers saved, into a model in eval mode.

    Args:
        path: the directory.
        device: where the weights go.
        dtype: what they become.
        dropout: replaces the directory's three dropout rates.

    Returns:
        The model (a `GPTClassifier` where `config.json` says so, else a `GPT`), and its tokenizer, None without one.

    Raises:
        UserError: something is missing, damaged, or no GPT-2; the message names file and key or tensor.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such model directory; `dvc repro` makes models/pretrained and others")
    if not (path / "config.json").exists():
        raise UserError(f"{path}: not a model directory, it has no config.json")
    hf = files.read_json(path / "config.json")
    config = _read_config(hf, path / "config.json", dropout)
    is_classifier = "GPT2ForSequenceClassification" in (hf.get("architectures") or [])
    weights = path / "model.safetensors"
    try:
        tensors = safetensors.torch.load_file(weights)
    except FileNotFoundError:
        raise UserError(f"{weights}: no such file; weights in another format must be saved as safetensors") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: damaged or no safetensors file ({error})") from None
    state = names.from_hf(tensors, config, names.head_name(config, is_classifier), str(weights))

    with torch.device("meta"):  # no memory for initial weights that would be thrown away
        if is_classifier:
            labels = hf.get("id2label") or {}
            model: Model = GPTClassifier(config, tuple(labels[key] for key in sorted(labels, key=int)))
        else:
            model = GPT(config)
    expected = model.state_dict()
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{weights}: {name} is {list(tensor.shape)}, config.json makes it {list(expected[name].shape)}"
            )
    if not is_classifier and config.tie_word_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    state = {name: tensor.to(device, dtype).contiguous() for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    if isinstance(model, GPT) and config.tie_word_embeddings:
        model.lm_head.weight = model.transformer.wte.weight
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    tokenizer = None
    if (path / "vocab.json").exists() and (path / "merges.txt").exists():
        tokenizer = Tokenizer.load(path)
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{path}: vocab.json has {tokenizer.vocab_size} tokens, config.json says {config.vocab_size}"
            )
    return model.eval(), tokenizer


def _read_config(hf: Any, where: Path, dropout: float | None) -> GPTConfig:
    if not isinstance(hf, dict) or hf.get("model_type") != "gpt2":
        raise UserError(f"{where}: model_type must be 'gpt2'")
    activation = hf.get("activation_function", "gelu_new")
    if activation not in TANH_GELU:
        raise UserError(f"{where}: activation_function {activation!r} is not GPT-2's; allowed: {', '.join(TANH_GELU)}")
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if hf.get(key):
            raise UserError(f"{where}: {key} is not part of GPT-2 and not supported")
    if hf.get("n_inner") not in (None, 4 * hf.get("n_embd", 768)):
        raise UserError(f"{where}: n_inner {hf['n_inner']} must be 4 × n_embd or null")
    known = GPTConfig.__dataclass_fields__
    try:
        values = {
            key: type(known[key].default)(hf[key]) if key != "vocab_size" else int(hf[key])
            for key in known
            if hf.get(key) is not None
        }
        if dropout is not None:
            values |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        return GPTConfig(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
