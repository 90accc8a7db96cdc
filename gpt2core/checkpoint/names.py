"""Our parameter names and transformers' side by side: one table, used in both directions.

transformers keeps GPT-2's linear layers as OpenAI did, [in, out]; PyTorch's are [out, in]. Apart from that the names
are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.model import GPTConfig

# Of each block: name, and whether transformers holds it transposed.
BLOCK: dict[str, bool] = {
    "ln_1.weight": False,
    "ln_1.bias": False,
    "attn.c_attn.weight": True,
    "attn.c_attn.bias": False,
    "attn.c_proj.weight": True,
    "attn.c_proj.bias": False,
    "ln_2.weight": False,
    "ln_2.bias": False,
    "mlp.c_fc.weight": True,
    "mlp.c_fc.bias": False,
    "mlp.c_proj.weight": True,
    "mlp.c_proj.bias": False,
}
# What older saves of transformers hold besides: masks that are no parameters.
BUFFERS = (".attn.bias", ".attn.masked_bias")


def table(config: GPTConfig, head: str | None) -> dict[str, bool]:
    """All names of a model directory, and which are transposed. head: lm_head.weight, score.weight or None (tied)."""
    names = {"transformer.wte.weight": False, "transformer.wpe.weight": False}
    for layer in range(config.n_layer):
        names |= {f"transformer.h.{layer}.{name}": transposed for name, transposed in BLOCK.items()}
    names |= {"transformer.ln_f.weight": False, "transformer.ln_f.bias": False}
    return names | ({head: False} if head else {})


def head_name(config: GPTConfig, is_classifier: bool) -> str | None:
    """The output layer's own tensor, where it has one."""
    if is_classifier:
        return "score.weight"
    return None if config.tie_word_embeddings else "lm_head.weight"


def to_hf(state: dict[str, Tensor], config: GPTConfig, head: str | None) -> dict[str, Tensor]:
    """Our state dict under transformers' names and layouts. Where there is no QKV bias, zeros make the same model."""
    tensors = {}
    for name, transposed in table(config, head).items():
        if name not in state and name.endswith("attn.c_attn.bias"):
            tensor = torch.zeros(3 * config.n_embd)
        else:
            tensor = state[name].detach()
        tensors[name] = (tensor.t() if transposed else tensor).contiguous()
    return tensors


def canonical(tensors: dict[str, Tensor], head: str | None) -> dict[str, Tensor]:
    """What transformers may have saved otherwise, brought to the names of `table`."""
    # The base model alone (GPT2Model) is saved without the prefix.
    if "wte.weight" in tensors:
        tensors = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    surplus = BUFFERS if head == "lm_head.weight" else (*BUFFERS, "lm_head.weight")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(surplus)}


def from_hf(tensors: dict[str, Tensor], config: GPTConfig, head: str | None, where: str) -> dict[str, Tensor]:
    """The way back. Raises UserError that names what is missing, surplus or of another shape."""
    tensors = canonical(tensors, head)
    names = table(config, head)
    if missing := sorted(names.keys() - tensors.keys()):
        raise UserError(f"{where}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if surplus := sorted(tensors.keys() - names.keys()):
        raise UserError(f"{where}: tensor {surplus[0]!r} is not part of this GPT-2 ({len(surplus)} such in all)")
    state = {name: tensors[name].t() if transposed else tensors[name] for name, transposed in names.items()}
    if not config.qkv_bias:
        for layer in range(config.n_layer):
            name = f"transformer.h.{layer}.attn.c_attn.bias"
            if state.pop(name).any():
                raise UserError(f"{where}: {name} is not zero, though config.json says qkv_bias: false")
    return state
