"""The whole of GPT-2 in one file (Radford et al. 2019), from the layer norm up to the model.

Everything is explicit: no fused kernel, no cache, a plain dict for the sizes. It is slower than `gpt2core.model` and
gives the same logits from the same weights. The keys of the dict:

    vocab_size, context_length, emb_dim, n_heads, n_layers
    drop_rate     dropout while training
    qkv_bias      whether queries, keys, and values have a bias (in GPT-2 they have)
    tie_weights   whether the output layer is the token embedding (in GPT-2 it is); absent: it is not
    norm_eps      epsilon of the layer norms; absent: 1e-5

Shapes: B batch, T tokens, C channels (emb_dim), H heads, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from gpt2core.checkpoint.model_dir import load
from gpt2core.errors import UserError


class LayerNorm(nn.Module):
    """Layer norm: each token's channels get mean 0 and variance 1, then a trained scale and shift (Ba et al. 2016)."""

    def __init__(self, emb_dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps  # keeps a constant token from dividing by 0
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension: [B, T, C] -> [B, T, C]."""
        mean = x.mean(dim=-1, keepdim=True)  # [B, T, 1]
        variance = x.var(dim=-1, keepdim=True, unbiased=False)  # [B, T, 1]
        return self.scale * (x - mean) / torch.sqrt(variance + self.eps) + self.shift


class GELU(nn.Module):
    """The activation function x · Φ(x), Φ the normal cumulative distribution (Hendrycks and Gimpel 2016).

    GPT-2 was trained with the tanh form, which differs from the `exact` one by less than 0.0005.
    """

    def __init__(self, exact: bool = False):
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        y = torch.erf(x / math.sqrt(2)) if self.exact else torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        return 0.5 * x * (1 + y)


class FeedForward(nn.Module):
    """Two linear layers, four times as wide in between; each token by itself."""

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        C = cfg["emb_dim"]
        self.layers = nn.Sequential(nn.Linear(C, 4 * C), GELU(), nn.Linear(4 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers to each token: [B, T, C] -> [B, T, C]."""
        return self.layers(x)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention where token t sees tokens up to t only.

    Args:
        d_model: C.
        num_heads: H, a divisor of C.
        max_seq_len: maximum number of tokens of a text.
        dropout: dropout probability of the attention weights.
        qkv_bias: whether queries, keys, and values have a bias.
    """

    def __init__(self, d_model: int, num_heads: int, max_seq_len: int, dropout: float = 0.0, qkv_bias: bool = True):
        super().__init__()
        if d_model % num_heads:
            raise UserError(f"num_heads: {num_heads} heads do not divide the width d_model {d_model}")
        self.num_heads = num_heads
        self.W_query = nn.Linear(d_model, d_model, bias=qkv_bias)
        self.W_key = nn.Linear(d_model, d_model, bias=qkv_bias)
        self.W_value = nn.Linear(d_model, d_model, bias=qkv_bias)
        self.out_proj = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        future = torch.ones(max_seq_len, max_seq_len, dtype=torch.bool).triu(diagonal=1)
        self.mask = nn.Buffer(future, persistent=False)  # not a parameter: not saved

    def forward(self, x: Tensor) -> Tensor:
        """Mix the values of the tokens so far for each token: [B, T, C] -> [B, T, C]."""
        T = x.size(1)
        q, k, v = (self.split_heads(linear(x)) for linear in (self.W_query, self.W_key, self.W_value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # [B, H, T, T]
        weights = scores.masked_fill(self.mask[:T, :T], float("-inf")).softmax(dim=-1)  # [B, H, T, T]
        mixed = self.dropout(weights) @ v  # [B, H, T, D]
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # [B, T, H, D] -> [B, T, C]

    def split_heads(self, x: Tensor) -> Tensor:
        """Reshape channels to heads: [B, T, C] -> [B, H, T, D]."""
        B, T, C = x.shape
        return x.view(B, T, self.num_heads, C // self.num_heads).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Attention between tokens, then feed-forward per token; each after a norm, with a residual connection."""

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        C, H, T = cfg["emb_dim"], cfg["n_heads"], cfg["context_length"]
        self.norm1, self.norm2 = LayerNorm(C, cfg.get("norm_eps", 1e-5)), LayerNorm(C, cfg.get("norm_eps", 1e-5))
        self.att = CausalSelfAttention(C, H, T, cfg["drop_rate"], cfg["qkv_bias"])
        self.ff = FeedForward(cfg)
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: Tensor) -> Tensor:
        """Add attention and feed-forward to the residual path: [B, T, C] -> [B, T, C]."""
        x = x + self.drop_shortcut(self.att(self.norm1(x)))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class GPTModel(nn.Module):
    """The language model: ids in, logits of the next token out. `cfg` has the keys at the top of this file."""

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*(TransformerBlock(cfg) for _ in range(cfg["n_layers"])))
        self.final_norm = LayerNorm(cfg["emb_dim"], cfg.get("norm_eps", 1e-5))
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        if cfg.get("tie_weights"):
            self.out_head.weight = self.tok_emb.weight

    def forward(self, idx: Tensor) -> Tensor:
        """Return logits [B, T, V] for ids [B, T] int64."""
        if idx.size(1) > self.pos_emb.num_embeddings:
            raise UserError(f"{idx.size(1)} tokens are more than this model's {self.pos_emb.num_embeddings} positions")
        positions = torch.arange(idx.size(1), device=idx.device)  # [T]
        x = self.drop_emb(self.tok_emb(idx) + self.pos_emb(positions))  # [B, T, C]
        return self.out_head(self.final_norm(self.trf_blocks(x)))

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> GPTModel:
        """Load a model directory in eval mode; a classifier keeps its head. Raises UserError if it is not a GPT-2."""
        source, _ = load(path, dtype=dtype)
        config, state = source.config, source.state_dict()
        is_classifier = "score.weight" in state
        if is_classifier and source.position != "last":
            raise UserError(f"{path}: judges by position: {source.position}; here a classifier reads the last token")
        cfg = dict(
            vocab_size=config.vocab_size, context_length=config.n_positions, emb_dim=config.n_embd,
            n_heads=config.n_head, n_layers=config.n_layer, drop_rate=0.0, qkv_bias=config.qkv_bias,
            tie_weights=config.tie_word_embeddings and not is_classifier, norm_eps=config.layer_norm_epsilon,
        )  # fmt: skip
        model = cls(cfg)
        if is_classifier:
            model.out_head = nn.Linear(config.n_embd, len(state["score.weight"]), bias=False)
        model.to(dtype).load_state_dict(rename(state, config.n_layer))
        return model.eval()


# Our names and those of a model directory, outside the blocks and in a block.
OUTSIDE = {
    "tok_emb.weight": "transformer.wte.weight", "pos_emb.weight": "transformer.wpe.weight",
    "final_norm.scale": "transformer.ln_f.weight", "final_norm.shift": "transformer.ln_f.bias",
}  # fmt: skip
BLOCK = {
    "norm1.scale": "ln_1.weight", "norm1.shift": "ln_1.bias",
    "att.out_proj.weight": "attn.c_proj.weight", "att.out_proj.bias": "attn.c_proj.bias",
    "norm2.scale": "ln_2.weight", "norm2.shift": "ln_2.bias",
    "ff.layers.0.weight": "mlp.c_fc.weight", "ff.layers.0.bias": "mlp.c_fc.bias",
    "ff.layers.2.weight": "mlp.c_proj.weight", "ff.layers.2.bias": "mlp.c_proj.bias",
}  # fmt: skip


def rename(state: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Return a state dict of `gpt2core.model` under the names of `GPTModel`."""
    ours = {name: state[source] for name, source in OUTSIDE.items()}
    ours["out_head.weight"] = state["score.weight" if "score.weight" in state else "lm_head.weight"]
    for layer in range(n_layers):
        block, source = f"trf_blocks.{layer}.", f"transformer.h.{layer}."
        ours |= {block + name: state[source + name_there] for name, name_there in BLOCK.items()}
        for kind in ("weight", "bias"):
            if (fused := state.get(f"{source}attn.c_attn.{kind}")) is not None:  # q, k and v in one: [3C, C] or [3C]
                for name, part in zip(("W_query", "W_key", "W_value"), fused.chunk(3), strict=True):
                    ours[f"{block}att.{name}.{kind}"] = part
    return ours
