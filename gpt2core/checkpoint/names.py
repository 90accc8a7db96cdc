"""The tensors of a GPT-2 under our names, transformers', and OpenAI's: one table, used in all directions.

transformers and OpenAI keep GPT-2's linear layers as [in, out]; PyTorch's are [out, in]. Apart from that our names are
transformers' names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2core.errors import UserError
from gpt2core.model import GPTConfig

if TYPE_CHECKING:
    from torch import Tensor  # converting OpenAI's files needs no torch, which takes seconds to import

# The tensors of a block: transformers' name, OpenAI's name, and transformers' shape in units of the width C.
BLOCK: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("ln_1.weight", "ln_1/g", (1,)),
    ("ln_1.bias", "ln_1/b", (1,)),
    ("attn.c_attn.weight", "attn/c_attn/w", (1, 3)),
    ("attn.c_attn.bias", "attn/c_attn/b", (3,)),
    ("attn.c_proj.weight", "attn/c_proj/w", (1, 1)),
    ("attn.c_proj.bias", "attn/c_proj/b", (1,)),
    ("ln_2.weight", "ln_2/g", (1,)),
    ("ln_2.bias", "ln_2/b", (1,)),
    ("mlp.c_fc.weight", "mlp/c_fc/w", (1, 4)),
    ("mlp.c_fc.bias", "mlp/c_fc/b", (4,)),
    ("mlp.c_proj.weight", "mlp/c_proj/w", (4, 1)),
    ("mlp.c_proj.bias", "mlp/c_proj/b", (1,)),
)
# Masks in files of older versions of transformers. They are not parameters.
BUFFERS = (".attn.bias", ".attn.masked_bias")
HEAD = "lm_head.weight"
WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}  # put before every name by these
MAX_LISTED = 5  # tensors with the same problem


@dataclass(frozen=True)
class Row:
    """A tensor in transformers' and in OpenAI's format.

    Args:
        hf: transformers' name, which is also ours.
        openai: OpenAI's name; empty for an output head of its own, which OpenAI's format does not have.
        shape: transformers' shape.
    """

    hf: str
    openai: str
    shape: tuple[int, ...]

    @property
    def is_linear(self) -> bool:
        """Whether this is the matrix of a linear layer, of which ours is the transpose."""
        return self.openai.endswith("/w")

    @property
    def openai_shape(self) -> tuple[int, ...]:
        """OpenAI's shape: its linear layers are convolutions of width 1, [1, in, out]."""
        return (1, *self.shape) if self.is_linear else self.shape


def table(config: GPTConfig, labels: Sequence[str] | None = None) -> list[Row]:
    """Return all tensors of a model directory, in the order of the model.

    Args:
        config: sizes of the transformer.
        labels: the classes of a classifier; None for a language model.
    """
    V, T, C = config.vocab_size, config.n_positions, config.n_embd
    rows = [
        Row("transformer.wte.weight", "model/wte", (V, C)),
        Row("transformer.wpe.weight", "model/wpe", (T, C)),
    ]
    for layer in range(config.n_layer):
        for hf, openai, factors in BLOCK:
            shape = tuple(factor * C for factor in factors)
            rows.append(Row(f"transformer.h.{layer}.{hf}", f"model/h{layer}/{openai}", shape))
    rows.append(Row("transformer.ln_f.weight", "model/ln_f/g", (C,)))
    rows.append(Row("transformer.ln_f.bias", "model/ln_f/b", (C,)))
    if labels is not None:
        rows.append(Row("score.weight", "", (len(labels), C)))
    elif not config.tie_word_embeddings:
        rows.append(Row(HEAD, "", (V, C)))
    return rows


def to_hf(state: dict[str, Tensor], config: GPTConfig, labels: Sequence[str] | None) -> dict[str, Tensor]:
    """Return our state dict under transformers' names and layouts. A missing QKV bias becomes zeros."""
    tensors = {}
    for row in table(config, labels):
        if row.hf not in state and row.hf.endswith("attn.c_attn.bias"):
            tensor = state["transformer.wte.weight"].new_zeros(row.shape)
        else:
            tensor = state[row.hf].detach()
        tensors[row.hf] = (tensor.t() if row.is_linear else tensor).contiguous()
    return tensors


def canonical(tensors: dict[str, Tensor], rows: Sequence[Row], where: str) -> dict[str, Tensor]:
    """Return tensors under the names of `rows`, without what transformers saves in addition.

    GPT2Model has no prefix `transformer.`. Masks, and a head that is tied or not used, are left out.

    Raises:
        UserError: the names have the prefix of a wrapped model, or a head that should be tied is another matrix.
    """
    for prefix, wrapper in WRAPPERS.items():
        if tensors and all(name.startswith(prefix) for name in tensors):
            raise UserError(
                f"{where}: every tensor's name starts with {prefix!r}, since the model was saved inside {wrapper}; "
                f"save the model inside it (model.{prefix}save_pretrained), or remove the prefix from the names"
            )
    if "wte.weight" in tensors:
        tensors = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    has_head, is_classifier = rows[-1].hf == HEAD, rows[-1].hf == "score.weight"
    head, wte = tensors.get(HEAD), tensors.get("transformer.wte.weight")
    if head is not None and wte is not None and not (has_head or is_classifier) and not _equal(head, wte):
        raise UserError(
            f"{where}: {HEAD!r} differs from 'transformer.wte.weight', though config.json says tie_word_embeddings: "
            "true, and versions of transformers differ in which they use; to use the file's head, say false there"
        )
    return {
        name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS) and (has_head or name != HEAD)
    }


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.equal(b)


def from_hf(
    tensors: dict[str, Tensor], config: GPTConfig, labels: Sequence[str] | None, where: str
) -> dict[str, Tensor]:
    """Return transformers' tensors as our state dict.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape, or a QKV bias that must be zero is not.
    """
    rows = table(config, labels)
    tensors = canonical(tensors, rows, where)
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, {r.hf: r.shape for r in rows}, where)
    for problem in nonzero_biases(tensors, config, where):
        raise UserError(problem)
    return {
        row.hf: tensors[row.hf].t() if row.is_linear else tensors[row.hf]
        for row in rows
        if config.qkv_bias or not row.hf.endswith("attn.c_attn.bias")
    }


def nonzero_biases(tensors: Mapping[str, Tensor], config: GPTConfig, where: str) -> Iterator[str]:
    """Yield a sentence for each QKV bias that is not zero although the model has none."""
    names = [name for name, tensor in tensors.items() if name.endswith("attn.c_attn.bias") and tensor.any()]
    if not config.qkv_bias:
        yield from listed(names, f"{where}: tensor {{}} is not zero, though config.json says qkv_bias: false")


def check_shapes(actual: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Check that a file has the expected tensors.

    Raises:
        UserError: names the first difference, and `where`, the file.
    """
    for problem in differences(actual, expected, where):
        raise UserError(problem)


def differences(
    actual: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: object
) -> Iterator[str]:
    """Yield a sentence for each tensor that is missing, unknown, or of another shape. `where` names the file."""
    yield from listed(sorted(expected.keys() - actual.keys()), f"{where}: tensor {{}} is missing")
    yield from listed(sorted(actual.keys() - expected.keys()), f"{where}: tensor {{}} is not part of this GPT-2")
    for name, shape in expected.items():
        if name in actual and actual[name] != shape:
            yield (
                f"{where}: tensor {name!r} has shape {list(actual[name])}, must have {list(shape)}; "
                "weights and sizes (config.json, hparams.json) are of different models"
            )


def listed(names: Sequence[str], sentence: str) -> Iterator[str]:
    """Yield the sentence for the first few names, and the number of the others."""
    for name in names[:MAX_LISTED]:
        yield sentence.format(f"{name!r:.200}")
    if more := names[MAX_LISTED:]:
        yield sentence.format(f"{len(more)} more: the last") + f" is {more[-1]!r:.200}"
