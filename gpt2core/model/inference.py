"""GPT-2 for decoding on a CPU.

A new token reads every weight once, so memory bandwidth decides the speed: weights are stored in the order in which the
kernels read them, in up to four bytes, and little else is done between two products.

| dtype    | bytes per weight | what is rounded      | kernel: decoder.c, and without it                             |
|----------|------------------|----------------------|---------------------------------------------------------------|
| float32  | 4                | nothing              | oneDNN                                                        |
| bfloat16 | 2                | weights (and inputs) | oneDNN; without AVX-512 FBGEMM as float16, after rounding     |
| float16  | 2                | weights              | FBGEMM; inputs and sums in float32                            |
| int8     | 1                | weights and inputs   | FBGEMM; one scale per output and per input row                |

`decoder.c` needs a C compiler (`decoder.load`), for bfloat16 and int8 also AVX-512 with bfloat16 and VNNI. float16 is
FBGEMM's alone.

Shapes: B batch, T tokens of this call, S tokens so far, C channels, H heads, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2core import numerics
from gpt2core.errors import UserError
from gpt2core.model import decoder
from gpt2core.model.attention import fused_attention
from gpt2core.model.decoder import LINEARS, CompiledBlocks, CompiledLinear
from gpt2core.model.gpt import GPT, Block, Transformer, next_positions
from gpt2core.model.kv_cache import KVCache, LayerCache
from gpt2core.model.quantized import int8_scales
from gpt2core.runtime import DECODING_DTYPES

Linear = Callable[[Tensor], Tensor]  # [N, in] -> [N, out], float32
# The number of rows for which oneDNN chooses the order of the weights. Without it, products of 1 to 64 rows take a
# seventh longer; with 1, those of several rows do.
PACKED_FOR_ROWS = 16


def pack(model: GPT, dtype: str) -> Packed:
    """Return a model in eval mode prepared for decoding, to be passed to `generate` in its place.

    Packed weights are copies; the embeddings are shared with `model`.

    Args:
        model: on a CPU it is packed; on another device it only gets the dtype.
        dtype: one of `DECODING_DTYPES`.

    Raises:
        UserError: the dtype is unknown, or is int8 and the model not on a CPU, or a model on a CPU is not in float32.
    """
    if dtype not in DECODING_DTYPES:
        raise UserError(f"dtype: {dtype!r} is not known; allowed: {', '.join(DECODING_DTYPES)}")
    device = model.transformer.wte.weight.device
    if device.type == "cpu":
        if (own := model.transformer.wte.weight.dtype) != torch.float32:
            raise UserError(
                f"pack: the model is in {str(own).removeprefix('torch.')}; load it in float32, and pack rounds it"
            )
        if dtype in ("float16", "int8") and "fbgemm" not in torch.backends.quantized.supported_engines:
            raise UserError(
                f"dtype: {dtype} needs FBGEMM, which this PyTorch is built without; take float32 or bfloat16"
            )
        return InferenceGPT(model, dtype)
    if dtype == "int8":
        raise UserError(f"dtype: int8 is for CPUs and the model is on {device}; take bfloat16, or GPT2CORE_DEVICE=cpu")
    return model if dtype == "float32" else copy.deepcopy(model).to(getattr(torch, dtype))


class InferenceGPT:
    """A `GPT` for generating: `config`, `n_tokens`, `transformer`, and `lm_head`, without gradients."""

    def __init__(self, model: GPT, dtype: str):
        self.config, self.n_tokens = model.config, model.n_tokens
        self.transformer = InferenceTransformer(model.transformer, dtype)
        self.lm_head = inference_linear(model.lm_head, dtype)

    def __call__(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits [B, T, V] for ids [B, T]."""
        hidden = self.transformer(ids, cache)  # [B, T, C]
        return self.lm_head(hidden.flatten(0, 1)).unflatten(0, ids.shape)


class InferenceTransformer:
    """`Transformer.forward`, with the blocks written out over rows [B * T, C]."""

    def __init__(self, transformer: Transformer, dtype: str):
        self.config, self.wte, self.wpe = transformer.config, transformer.wte, transformer.wpe
        self.ln_f = norm(transformer.ln_f)
        self.blocks = [InferenceBlock(block, dtype) for block in cast(Iterable[Block], transformer.h)]
        self._compiled = _compiled_blocks(self.blocks)

    def __call__(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states as `Transformer.forward` does: [B, T] -> [B, T, C]."""
        B, T = ids.shape
        if positions is None:
            positions = next_positions(ids, cache, self.config.n_positions)  # [T]
        x = (self.wte.weight[ids] + self.wpe.weight[positions]).view(B * T, -1)  # [B * T, C]
        if self._compiled and cache and T <= decoder.MAX_NEW_TOKENS:
            x = self._compiled(x, B, cache, mask)
        else:
            for i, block in enumerate(self.blocks):
                x = block(x, B, cache.layers[i] if cache else None, mask)
        return self.ln_f(x).view(B, T, -1)  # [B, T, C]


class InferenceBlock:
    """`Block.forward` without dropout and without a module's call for each of its parts."""

    def __init__(self, block: Block, dtype: str):
        self.n_head = block.attn.n_head
        self.norms = block.ln_1, block.ln_2
        self.ln_1, self.ln_2 = map(norm, self.norms)
        self.c_attn, self.attn_proj, self.c_fc, self.mlp_proj = (
            inference_linear(linear, dtype)
            for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        )

    def __call__(self, x: Tensor, B: int, cache: LayerCache | None, mask: Tensor | None) -> Tensor:
        """Return the output of `Block.forward` for rows of B sequences: [B * T, C] -> [B * T, C]."""
        N, C = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(B, N // B, 3, self.n_head, C // self.n_head)  # [B, T, 3, H, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 × [B, H, T, D]
        if cache is not None:
            k, v = cache.append(k, v)  # [B, H, S, D]
        y = fused_attention(q, k, v, mask).transpose(1, 2).reshape(N, C)  # [B * T, C]
        x = x + self.attn_proj(y)
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


def _compiled_blocks(blocks: Sequence[InferenceBlock]) -> CompiledBlocks | None:
    """Return all blocks as one compiled function, or None if their linear layers are not compiled."""
    linears = [{name: getattr(block, name) for name in LINEARS} for block in blocks]
    if not all(isinstance(linear, CompiledLinear) for named in linears for linear in named.values()):
        return None
    return CompiledBlocks(blocks[0].n_head, [block.norms for block in blocks], linears)


def norm(layer: nn.LayerNorm) -> Linear:
    """Return a layer norm as a plain function."""
    shape, weight, bias, eps = layer.normalized_shape, layer.weight.detach(), layer.bias.detach(), layer.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def inference_linear(linear: nn.Linear, dtype: str) -> Linear:
    """Return a function that computes x Wᵀ + b with W packed once, for x [N, in] in float32; see the module's table."""
    weight = linear.weight.detach().float()  # [out, in]
    bias = None if linear.bias is None else linear.bias.detach().float()  # [out]
    if dtype == "float32" and numerics.is_portable():  # the order of a sum may depend on the CPU
        return _unpacked(weight, bias, torch.float32)
    compiled = None if numerics.is_portable() else decoder.load()
    if compiled and dtype in compiled.dtypes:
        return CompiledLinear(compiled, weight, None if bias is None else bias.contiguous(), dtype)
    if dtype == "int8":
        return _int8(weight, bias)
    if dtype == "float32" or (dtype == "bfloat16" and torch.cpu._is_avx512_supported()):
        return _onednn(weight, bias, getattr(torch, dtype))
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return _unpacked(weight, bias, getattr(torch, dtype))
    return _fbgemm_half(weight.to(getattr(torch, dtype)).float(), bias)


def _unpacked(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    """Return a layer without packed weights: PyTorch lacks the library, or the bytes must not depend on the CPU."""
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return lambda x: F.linear(x.to(dtype), weight, bias).float()


def _onednn(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    if not torch.backends.mkldnn.is_available():
        return _unpacked(weight, bias, dtype)
    op = torch.ops.mkldnn._linear_pointwise.default
    bias = None if bias is None else bias.to(dtype)
    weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), PACKED_FOR_ROWS)
    if dtype == torch.float32:
        return lambda x: op(x, weight, bias, "none", [], "")
    return lambda x: op(x.to(dtype), weight, bias, "none", [], "").float()


def builtin(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an operator without the check of its arguments for tracing, which takes 5% of an int8 token's time."""
    return getattr(op, "_op", op)


def _fbgemm_half(weight: Tensor, bias: Tensor | None) -> Linear:
    """Pack float16 weights, or bfloat16's: those from 2^-14 to 65,504 are float16, smaller ones lose at most 2^-25."""
    op = builtin(torch.ops.quantized.linear_dynamic_fp16.default)
    packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    return lambda x: op(x, packed)


def _int8(weight: Tensor, bias: Tensor | None) -> Linear:
    op = builtin(torch.ops.quantized.linear_dynamic.default)
    scales = int8_scales(weight)  # [out]
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantize_per_channel")  # deprecated without a successor for FBGEMM
        quantized = torch.quantize_per_channel(weight, scales.double(), zeros, axis=0, dtype=torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantized, bias)
    # Without VNNI the kernel adds products in pairs in 16 bits: inputs may have 7 bits there, else they would overflow.
    reduce_range = not torch.cpu._is_vnni_supported()

    def forward(x: Tensor) -> Tensor:
        if x.size(0) == 1:
            return op(x, packed, reduce_range)
        # The kernel has one scale for all of x: with each row divided by its largest value, none spoils another's.
        largest = x.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)  # [N, 1]
        y = op(x / largest, packed, reduce_range)  # x Wᵀ / largest + b
        return y.mul_(largest) if bias is None else torch.lerp(bias, y, largest)  # b + largest * (y - b)

    return forward


Packed = GPT | InferenceGPT
