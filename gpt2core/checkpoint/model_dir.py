"""Model directories: `config.json`, `model.safetensors`, and the tokenizer, as transformers reads them. No pickle."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict, Unpack

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.overrides import TorchFunctionMode

from gpt2core import files
from gpt2core.checkpoint import names
from gpt2core.checkpoint.config_json import (
    GENERATION_CONFIG,
    MAX_CONFIG_BYTES,
    Described,
    config_json,
    generation_config_json,
    read_config_json,
)
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTClassifier
from gpt2core.model.quantized import QuantizedDtype, quantize_linears
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer, has_tokenizer, load_tokenizer

Model = GPT | GPTClassifier
WEIGHTS = "model.safetensors"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_HEADER_BYTES = 4 << 20  # the largest GPT-2's has 60 KB
ADAPTER_CONFIG = "adapter_config.json"
SHARDS = "model.safetensors.index.json"  # names the file of each tensor, if transformers has split the weights


def save_model(
    path: str | os.PathLike[str], model: Model, tokenizer: Tokenizer, *, chat_template: str | None = None
) -> None:
    """Write a model directory, atomically; the same weights give the same bytes.

    Args:
        path: the directory; an existing one is replaced.
        model: its weights are written in float32.
        tokenizer: of the model.
        chat_template: Jinja template of the prompt of an instruction-tuned model.

    Raises:
        UserError: the tokenizer has more tokens than the model.
    """
    for problem in too_many_tokens(tokenizer, model.config.vocab_size, path):
        raise UserError(problem)
    head: dict[str, Any] = {}
    if isinstance(model, GPTClassifier):
        head = {"labels": model.labels, "position": model.position, "padded_length": model.padded_length}
    state = {name: tensor.float().cpu() for name, tensor in model.state_dict().items()}
    with files.atomic_dir(path) as folder:
        tensors = names.to_hf(state, model.config, head.get("labels"))
        with files.atomic_path(folder / WEIGHTS) as file:  # for its mode: safetensors gives 0600
            safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
        files.write_json(folder / "config.json", config_json(model.config, tokenizer.eot_id, **head))
        if not head:
            files.write_json(folder / GENERATION_CONFIG, generation_config_json(tokenizer.eot_id))
        extra = {"chat_template": chat_template} if chat_template else None
        tokenizer.save(folder, model_max_length=model.config.n_positions, extra=extra)


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    dropout: float | None = None,
    frozen_dtype: QuantizedDtype | None = None,
) -> tuple[Model, Tokenizer | None]:
    """Load a model directory, ours or one that transformers saved.

    Args:
        path: the directory.
        device: of the weights.
        dtype: of the weights.
        dropout: replaces the directory's three dropout rates.
        frozen_dtype: dtype of the frozen linear layers of the blocks (see `model/quantized.py`). They are converted one
            at a time, so that there is no float32 copy of all of them.

    Returns:
        The model in eval mode (a `GPTClassifier` if `config.json` says so, otherwise a `GPT`), and its tokenizer (None
        without one).

    Raises:
        UserError: something is missing, damaged, or not GPT-2; the message names file and key or tensor.
    """
    path = Path(path)
    described = read_described(path, dropout)
    config = described.config
    state, _ = read_state(path, described)

    with torch.device("meta"), _SkipInit():  # no memory and no time for initial weights
        model: Model
        if described.labels is not None:
            model = GPTClassifier(config, described.labels, described.position, described.padded_length)
        else:
            model = GPT(config)
    if isinstance(model, GPT) and config.tie_word_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    if frozen_dtype:
        model.load_state_dict(state, assign=True)  # views of the file
        quantize_linears(model.transformer.h, frozen_dtype)
        model.transformer.h.to(device)
        state = {name: state[name] for name, _ in model.named_parameters()}
    state = {name: tensor.to(device, dtype).contiguous() for name, tensor in state.items()}
    model.load_state_dict(state, assign=True, strict=frozen_dtype is None)
    if isinstance(model, GPT) and config.tie_word_embeddings:
        model.lm_head.weight = model.transformer.wte.weight
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    tokenizer = load_tokenizer(path) if has_tokenizer(path) else None
    if tokenizer:
        for problem in vocabulary_problems(tokenizer, described, path):
            raise UserError(problem)
        if isinstance(model, GPT):
            model.n_tokens = tokenizer.vocab_size
    return model.eval(), tokenizer


class _SkipInit(TorchFunctionMode):
    """Leave out the functions of torch.nn.init: on the meta device, the first one imports a compiler for a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


class _LoadOptions(TypedDict, total=False):
    device: torch.device | str
    dropout: float | None
    frozen_dtype: QuantizedDtype | None


def load_with_tokenizer(path: str | os.PathLike[str], **options: Unpack[_LoadOptions]) -> tuple[Model, Tokenizer]:
    """Load a model of either kind with its tokenizer; see `load`.

    Raises:
        UserError: as `load`, or the directory has no tokenizer.
    """
    model, tokenizer = load(path, **options)
    if tokenizer is None:
        raise UserError(f"{path}: has no vocab.json and merges.txt, so text cannot be read or written")
    return model, tokenizer


def load_language_model(path: str | os.PathLike[str], **options: Unpack[_LoadOptions]) -> tuple[GPT, Tokenizer]:
    """Load a language model with its tokenizer; see `load`.

    Raises:
        UserError: as `load_with_tokenizer`, or the directory holds a classifier.
    """
    model, tokenizer = load_with_tokenizer(path, **options)
    return require_language_model(model, str(path)), tokenizer


def load_classifier(path: str | os.PathLike[str], **options: Unpack[_LoadOptions]) -> tuple[GPTClassifier, Tokenizer]:
    """Load a classifier with its tokenizer; see `load`.

    Raises:
        UserError: as `load_with_tokenizer`, or the directory holds a language model.
    """
    model, tokenizer = load_with_tokenizer(path, **options)
    return require_classifier(model, str(path)), tokenizer


def require_language_model(model: Model, where: str) -> GPT:
    """Return the model if it is a language model. Raises UserError that names `where` if not."""
    if not isinstance(model, GPT):
        raise UserError(
            f"{where}: is a classifier, not a language model such as models/pretrained; it classifies texts: "
            f"gpt2core classify {where} TEXT"
        )
    return model


def require_classifier(model: Model, where: str) -> GPTClassifier:
    """Return the model if it is a classifier. Raises UserError that names `where` if not."""
    if not isinstance(model, GPTClassifier):
        raise UserError(f"{where}: is a language model, not a classifier; it writes texts: gpt2core generate {where}")
    return model


def vocabulary_problems(tokenizer: Tokenizer, described: Described, path: Path) -> Iterator[str]:
    """Yield a sentence for each contradiction between a tokenizer and `config.json` that changes results."""
    yield from too_many_tokens(tokenizer, described.config.vocab_size, path)
    where = path / "config.json"
    eos_id, pad_id = described.special_ids.get("eos"), described.special_ids.get("pad")
    # transformers writes GPT-2's 50256 by default, which a smaller vocabulary does not have.
    if eos_id is not None and eos_id != tokenizer.eot_id and eos_id < described.config.vocab_size:
        yield f"{where}: eos_token_id is {eos_id}, the tokenizer's {END_OF_TEXT} is {tokenizer.eot_id}; correct one"
    if described.is_classifier and pad_id in tokenizer.ranks.values():
        yield f"{where}: pad_token_id {pad_id} is a token of texts, which transformers would take for padding"


def too_many_tokens(tokenizer: Tokenizer, vocab_size: int, path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a sentence if ids of a tokenizer are outside a model's vocabulary.

    The vocabulary may be larger: some libraries pad it to a round number. An id without a token is never generated.
    """
    if tokenizer.vocab_size > vocab_size:
        yield f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}"


def read_state(path: Path, described: Described | None = None) -> tuple[dict[str, torch.Tensor], str]:
    """Return a model directory's weights under our names, as views of its files, and the file for messages.

    Raises:
        UserError: as `load`.
    """
    described = described or read_described(path)
    tensors, where = read_tensors(path)
    return names.from_hf(tensors, described.config, described.labels, where), where


def read_described(path: Path, dropout: float | None = None) -> Described:
    """Read a model directory's `config.json`.

    Raises:
        UserError: there is none, or it does not describe a model that we can compute.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such model directory; `dvc repro` makes models/pretrained and others")
    if (path / ADAPTER_CONFIG).exists() and not (path / "config.json").exists():
        base = files.read_json(path / ADAPTER_CONFIG, MAX_CONFIG_BYTES)
        base = base.get("base_model_name_or_path") if isinstance(base, dict) else None
        name = shlex.quote(base) if isinstance(base, str) and base.isprintable() and len(base) < 200 else "BASE"
        raise UserError(
            f"{path}: is a LoRA adapter of {base!r:.200}; merge them into a model directory: "
            f"gpt2core merge {name} {shlex.quote(str(path))} OUT_DIR"
        )
    if not (path / "config.json").exists():
        raise UserError(f"{path}: not a model directory, it has no config.json")
    return read_config_json(path / "config.json", dropout)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Return the tensors of a model directory, as views of its files, and the file for messages.

    Raises:
        UserError: a file is missing or damaged, or does not match the index of several files.
    """
    if (path / WEIGHTS).exists() or not (path / SHARDS).exists():
        return read_safetensors(path / WEIGHTS), str(path / WEIGHTS)
    where = path / SHARDS
    index = files.read_json(where, MAX_CONFIG_BYTES)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(type(v) is str for v in weight_map.values()):
        raise UserError(f"{where}: must have a weight_map of tensors and file names")
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise UserError(f"{where}: {name!r} is no file of this directory")
        shard = read_safetensors(path / name)
        if repeated := shard.keys() & tensors.keys():
            raise UserError(f"{path / name}: tensor {min(repeated)!r} is in another file, too")
        tensors |= shard
    if differ := weight_map.keys() ^ tensors.keys():
        raise UserError(f"{where}: tensor {min(differ)!r} is in the weight_map or in the files, but not in both")
    return tensors, str(where)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, as views of it. Raises UserError if it is missing, damaged, or has no weights."""
    try:
        with files.open_regular(path) as file:
            header_bytes = int.from_bytes(file.read(8), "little")
    except UserError as error:
        if os.path.lexists(path):
            raise
        raise UserError(f"{error}; weights in another format must be saved as safetensors") from None
    if header_bytes > MAX_HEADER_BYTES:
        raise UserError(f"{path}: damaged or no safetensors file (a header of {header_bytes:,} bytes)")
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or no safetensors file ({error})") from None
    for name, tensor in tensors.items():
        is_mask = name.endswith(names.BUFFERS)  # by older versions of transformers: of bool or uint8
        if tensor.dtype not in DTYPES and not is_mask:
            found, allowed = (", ".join(str(d).removeprefix("torch.") for d in ds) for ds in ((tensor.dtype,), DTYPES))
            raise UserError(
                f"{path}: tensor {name!r:.80} has the type {found}; weights must be floating-point numbers: {allowed}"
            )
    return tensors
