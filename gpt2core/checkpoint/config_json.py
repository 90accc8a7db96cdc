"""Reading and writing `config.json` of a model directory: the keys of transformers' GPT2Config, and our `qkv_bias`.

A model that transformers' GPT-2 cannot express (a classifier that reads another position than the last) gets our own
`model_type`, so that transformers refuses the directory instead of computing something else.

Files of older versions of this project are read unchanged (tests/checkpoint/older). Newer versions may add features
under our own `model_type` only, where this version refuses unknown keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpt2core import files
from gpt2core.errors import UserError, listed, schema_problem
from gpt2core.model.config import POSITIONS, GPTConfig

TRANSFORMERS_TYPE, OWN_TYPE = "gpt2", "gpt2core"
GENERATION_CONFIG = "generation_config.json"
# What a model directory may have, by transformers and by us.
MODEL_FILES = (
    "config.json", GENERATION_CONFIG, "model*.safetensors", "model.safetensors.index.json", "vocab.json", "merges.txt",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "README.md",
)  # fmt: skip
CLASSIFIERS = ("GPT2ForSequenceClassification", "GPTClassifier")
ALIASES = {  # transformers reads these, too, and prefers them
    "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}  # fmt: skip
MAX_LAYERS = 10_000
MAX_CONFIG_BYTES = 16 << 20  # of a classifier with many classes
S = TypeVar("S", bound=BaseModel)

TokenId = Annotated[int, Field(ge=0, le=1 << 24)] | None
Size = Annotated[int, Field(ge=1, le=1 << 24)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class _Keys(BaseModel):
    """Every key that changes results; a missing one has the default of transformers, which is GPT-2 124M's.

    A key has a value that is computed, or the only one that is GPT-2's.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    activation_function: Literal["gelu_new", "gelu_pytorch_tanh"] = "gelu_new"  # both are the tanh form
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False
    is_decoder: bool = True  # of no effect without cross-attention
    position: Literal["last", "first", "mean", "padded"] = "last"
    padded_length: Size | None = None
    architectures: list[str] | None = None
    problem_type: str | None = None  # of a classifier
    id2label: dict[str, str] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    bos_token_id: TokenId = None
    eos_token_id: TokenId = None
    pad_token_id: TokenId = None
    n_inner: int | None = None
    n_ctx: int | None = None


class _Numbers(BaseModel):
    """The keys that become a GPTConfig."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    vocab_size: Size
    n_positions: Size = 1024
    n_embd: Annotated[int, Field(ge=1, le=1 << 17)] = 768
    n_layer: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 12
    n_head: Size = 12
    resid_pdrop: Probability = 0.0
    embd_pdrop: Probability = 0.0
    attn_pdrop: Probability = 0.0
    layer_norm_epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    initializer_range: Annotated[float, Field(ge=0, le=1000)] = 0.02
    qkv_bias: bool = True
    tie_word_embeddings: bool = True


@dataclass(frozen=True)
class Described:
    """The content of a `config.json`.

    Args:
        config: the transformer's sizes.
        labels: a classifier's classes in the order of its logits; None for a language model.
        position: input of a classifier's head; see `GPTClassifier`.
        padded_length: number of tokens to which a classifier's texts are padded; None: they are not.
        dtype: of the weights in the file, or None.
        special_ids: ids of bos, eos, and pad, if given.
        model_type: `gpt2` if transformers can open the directory.
    """

    config: GPTConfig
    labels: tuple[str, ...] | None
    position: str
    padded_length: int | None
    dtype: str | None
    special_ids: dict[str, int]
    model_type: str

    @property
    def is_classifier(self) -> bool:
        """Whether the model is a classifier."""
        return self.labels is not None


def config_json(
    config: GPTConfig,
    eot_id: int,
    *,
    labels: tuple[str, ...] | None = None,
    position: str = "last",
    padded_length: int | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Return the content of `config.json`; see `Described` for the arguments. `eot_id` is the id of `<|endoftext|>`."""
    is_own = position != "last"
    content = {
        "model_type": OWN_TYPE if is_own else TRANSFORMERS_TYPE,
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "pad_token_id": eot_id,
        "dtype": dtype,
        **config.to_dict(),
        "n_ctx": config.n_positions,  # OpenAI's name, which llama.cpp reads
    }
    if labels is not None:
        content |= {
            "architectures": ["GPTClassifier" if is_own else "GPT2ForSequenceClassification"],
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }
        content |= {"position": position} if is_own else {}
        content |= {"padded_length": padded_length} if padded_length is not None else {}
    return content


def generation_config_json(eot_id: int) -> dict[str, Any]:
    """Return the content of `generation_config.json`: where transformers starts, ends, and pads texts."""
    return {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}


def read_config_json(path: Path, dropout: float | None = None) -> Described:
    """Read a `config.json`, ours or transformers'.

    Args:
        path: the file.
        dropout: replaces its three dropout rates.

    Raises:
        UserError: it does not describe a GPT-2 that we can compute, or is of a newer version of this project; the
            message names the key.
    """
    hf = files.read_json(path, MAX_CONFIG_BYTES)
    if isinstance(hf, dict) and str(hf.get("model_type")).startswith(OWN_TYPE):
        _refuse_newer(hf, path)
    if not isinstance(hf, dict) or hf.get("model_type") not in (TRANSFORMERS_TYPE, OWN_TYPE):
        raise UserError(f"{path}: model_type must be {TRANSFORMERS_TYPE!r} or {OWN_TYPE!r}")
    hf = _without_aliases(hf, path)
    keys = _validated(_Keys, hf, path)
    sizes = _sizes(hf, path, dropout)
    if keys.n_inner not in (None, 4 * sizes.n_embd):
        raise UserError(f"{path}: n_inner {keys.n_inner} must be 4 × n_embd or null")
    if keys.n_ctx not in (None, sizes.n_positions):
        raise UserError(f"{path}: n_ctx {keys.n_ctx} must be n_positions, {sizes.n_positions}")
    is_classifier = any(name in CLASSIFIERS for name in keys.architectures or ())
    if is_classifier:
        _check_position(keys, hf["model_type"], path)
    ids = {"bos": keys.bos_token_id, "eos": keys.eos_token_id, "pad": keys.pad_token_id}
    return Described(
        config=sizes,
        labels=_labels(keys, path) if is_classifier else None,
        position=keys.position,
        padded_length=keys.padded_length,
        dtype=keys.dtype or keys.torch_dtype,
        special_ids={name: token_id for name, token_id in ids.items() if token_id is not None},
        model_type=hf["model_type"],
    )


def _without_aliases(hf: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the keys under GPT-2's names. Raises UserError if both names of a key are there and differ."""
    renamed = {key: value for key, value in hf.items() if key not in ALIASES}
    for alias, key in ALIASES.items():
        if alias not in hf:
            continue
        if renamed.setdefault(key, hf[alias]) != hf[alias]:
            raise UserError(f"{path}: {alias} {hf[alias]!r:.40} differs from {key} {renamed[key]!r:.40}; remove one")
    return renamed


def _refuse_newer(hf: dict[str, Any], path: Path) -> None:
    """Raise UserError if a `config.json` of our own type has keys or values that this version does not know."""
    known = config_json(GPTConfig(vocab_size=1), 0, labels=("",), position="padded", padded_length=1).keys()
    unknown = [f"the key {key!r}" for key in sorted(hf.keys() - known)]
    architectures = hf.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if name not in CLASSIFIERS:
            unknown.append(f"architectures {name!r}")
    for key, allowed in (("model_type", (OWN_TYPE,)), ("position", POSITIONS)):
        if hf.get(key, allowed[0]) not in allowed:
            unknown.append(f"{key} {hf[key]!r}")
    if unknown:
        raise UserError(
            f"{path}: {', '.join(unknown)}: unknown to this version of gpt2core, so a newer one made the directory; "
            "update this one (git pull), or make the directory again with it (dvc repro)"
        )


def _sizes(hf: dict[str, Any], path: Path, dropout: float | None) -> GPTConfig:
    values = _validated(_Numbers, hf, path).model_dump()
    if dropout is not None:
        values |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    try:
        return GPTConfig(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _validated(schema: type[S], hf: dict[str, Any], path: Path) -> S:
    try:
        return schema.model_validate({key: value for key, value in hf.items() if key in schema.model_fields})
    except ValidationError as error:
        raise UserError(f"{path}: {schema_problem(error)}") from None


def _check_position(keys: _Keys, model_type: str, path: Path) -> None:
    if model_type != OWN_TYPE and keys.position != "last":
        raise UserError(
            f"{path}: position {keys.position!r} needs model_type {OWN_TYPE!r}: transformers would read the last token"
        )
    if (keys.padded_length is not None) != (keys.position == "padded"):
        raise UserError(f"{path}: padded_length {keys.padded_length} does not go with position {keys.position!r}")


def _labels(keys: _Keys, path: Path) -> tuple[str, ...]:
    """Return the classes in the order of their ids; transformers omits its default, LABEL_0 and LABEL_1.

    Raises:
        UserError: the outputs are not the logits of exclusive classes.
    """
    if keys.problem_type not in (None, "single_label_classification"):
        raise UserError(f"{path}: problem_type {keys.problem_type!r:.40} is not supported; its outputs are no classes")
    id2label = keys.id2label or {str(i): f"LABEL_{i}" for i in range(2)}
    if set(id2label) != {str(i) for i in range(len(id2label))}:
        raise UserError(f"{path}: id2label must map 0, 1, … to the classes' names, found {listed([*id2label])}")
    if len(id2label) == 1:
        raise UserError(f"{path}: id2label has one class; such a model computes a number or a yes or no, not a class")
    labels = tuple(id2label[str(i)] for i in range(len(id2label)))
    if len(set(labels)) < len(labels):
        raise UserError(f"{path}: id2label gives two classes the name {_repeated(labels)!r:.80}; give each its own")
    return labels


def _repeated(names: tuple[str, ...]) -> str:
    return next(name for number, name in enumerate(names) if name in names[:number])
