"""Your GPT-2. Fill in one step after the other; `pytest examples/course -x` says whether a step is correct.

The README next to this file has the steps and hints. Shapes: B batch, T tokens, C channels (`emb_dim`), H heads
(`n_heads`), D = C / H head size, V vocabulary.
"""

from __future__ import annotations

# ruff: noqa: F401 (the steps to come need these imports)
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# Step 1: text


def split_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, without white space.

    >>> split_words("The cat sat, then it ran.")
    ['The', 'cat', 'sat', ',', 'then', 'it', 'ran', '.']
    """
    raise NotImplementedError


def build_vocab(words: Sequence[str]) -> dict[str, int]:
    """Map the distinct words, in alphabetical order, to 0, 1, 2, and so on."""
    raise NotImplementedError


def encode_words(text: str, vocab: dict[str, int]) -> list[int]:
    """Return the ids of the words of a text."""
    raise NotImplementedError


def decode_words(ids: Sequence[int], vocab: dict[str, int]) -> str:
    """Return the words of ids, with a space between each two."""
    raise NotImplementedError


# Step 2: byte-pair encoding

Pair = tuple[int, int]


def count_pairs(ids: Sequence[int]) -> Counter[Pair]:
    """Count the pairs of adjacent ids."""
    raise NotImplementedError


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each occurrence of the pair, from the left, by the new id.

    >>> merge([1, 2, 1, 2, 2], (1, 2), 9)
    [9, 9, 2]
    """
    raise NotImplementedError


def train_bpe(text: str, n_merges: int) -> list[Pair]:
    """Learn merges, starting from the bytes of a text; merge number n makes the id 256 + n.

    Merge the most frequent pair, and of equally frequent pairs the smallest. Stop early if no pair is left.
    """
    raise NotImplementedError


def encode(text: str, merges: Sequence[Pair]) -> list[int]:
    """Return the ids of a text: its bytes, merged in the order in which the merges were learned."""
    raise NotImplementedError


def decode(ids: Sequence[int], merges: Sequence[Pair]) -> str:
    """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
    raise NotImplementedError


# Step 3: embeddings


def windows(ids: Sequence[int], length: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return all windows of a text and their targets, the next ids: [n, length] and [n, length], int64.

    A window starts at 0, `stride`, 2 · `stride` …, as long as it and its last target are in the text.

    >>> windows([10, 11, 12, 13, 14, 15], length=3, stride=2)[1]
    tensor([[11, 12, 13],
            [13, 14, 15]])
    """
    raise NotImplementedError


def embed(ids: Tensor, token_table: Tensor, position_table: Tensor) -> Tensor:
    """Add the vector of each token and the vector of its position: ids [B, T] -> [B, T, C].

    Args:
        ids: [B, T] int64.
        token_table: [V, C], a row per token.
        position_table: [maximum T, C], a row per position.
    """
    raise NotImplementedError


# Step 4: softmax and cross-entropy


def softmax(x: Tensor) -> Tensor:
    """Return e^x over their sum along the last dimension, also where e^x is too large for float32."""
    raise NotImplementedError


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -ln p(target): logits [N, V] and targets [N] int64 -> []."""
    raise NotImplementedError


# Step 5: gradient descent


def descend(parameters: Sequence[Tensor], lr: float) -> None:
    """Take one step of gradient descent in place: subtract lr times the gradient, then set the gradient to None."""
    raise NotImplementedError


def minimize(loss: Callable[[], Tensor], parameters: Sequence[Tensor], lr: float, n_steps: int) -> list[float]:
    """Take steps of gradient descent; return the loss before each step."""
    raise NotImplementedError


# Step 6: attention


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √D) v, where token t sees tokens up to t only: three times [..., T, D] -> [..., T, D]."""
    raise NotImplementedError


# Step 7: multi-head attention


class MultiHeadAttention(nn.Module):
    """Causal self-attention with H heads.

    Parts, named as in GPT-2: `c_attn`, a linear layer from C to 3C for queries, keys, and values; `c_proj`, a linear
    layer from C to C for the concatenated heads.
    """

    def __init__(self, emb_dim: int, n_heads: int):
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens so far for each token: [B, T, C] -> [B, T, C]."""
        raise NotImplementedError


# Step 8: the block


class LayerNorm(nn.Module):
    """Layer norm: each token's channels get mean 0 and variance 1, then are multiplied by `weight` and added to `bias`.

    Parts: `weight` [C], initialized with ones; `bias` [C], initialized with zeros. Add 1e-5 to the variance.
    """

    def __init__(self, emb_dim: int):
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension: [B, T, C] -> [B, T, C]."""
        raise NotImplementedError


def gelu(x: Tensor) -> Tensor:
    """Return GELU in the tanh form, with which GPT-2 was trained: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))."""
    raise NotImplementedError


class FeedForward(nn.Module):
    """Two linear layers with GELU in between. Parts: `c_fc` from C to 4C, `c_proj` from 4C to C."""

    def __init__(self, emb_dim: int):
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to each token: [B, T, C] -> [B, T, C]."""
        raise NotImplementedError


class Block(nn.Module):
    """Attention, then feed-forward; each reads a layer norm of the residual path and adds to the path.

    Parts: `ln_1`, `attn`, `ln_2`, `mlp`.
    """

    def __init__(self, emb_dim: int, n_heads: int):
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply both: [B, T, C] -> [B, T, C]."""
        raise NotImplementedError


# Step 9: GPT


class GPT(nn.Module):
    """The language model: ids in, logits of the next token out.

    Parts: `wte` and `wpe`, `nn.Embedding`s of tokens and positions, both initialized with normal(0, 0.02); `h`, an
    `nn.ModuleList` of blocks; `ln_f`, the final layer norm. The output layer is the token embedding: it multiplies by
    `wte.weight` transposed and has no parameters of its own.
    """

    def __init__(self, vocab_size: int, context_length: int, emb_dim: int, n_heads: int, n_layers: int):
        super().__init__()
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits: ids [B, T] int64 -> [B, T, V]."""
        raise NotImplementedError


# Step 10: training


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> float:
    """Take one step on inputs and targets, [B, T] each; return the loss before the step."""
    raise NotImplementedError


def train(model: GPT, ids: Sequence[int], n_steps: int, batch_size: int = 8, lr: float = 3e-3) -> list[float]:
    """Train with `torch.optim.AdamW` on random windows of the model's context length; return the loss of each step."""
    raise NotImplementedError


# Step 11: generation


@torch.no_grad()
def generate(
    model: GPT, ids: Tensor, max_new_tokens: int, temperature: float = 0.0, top_k: int | None = None
) -> Tensor:
    """Append tokens: [B, P] -> [B, P + max_new_tokens].

    The model sees the last tokens up to its context length.

    Args:
        model: your GPT.
        ids: the prompts, [B, P] int64.
        max_new_tokens: number of tokens to append.
        temperature: 0: take the likeliest token. Otherwise divide the logits by it, and draw.
        top_k: draw from the k likeliest tokens only.
    """
    raise NotImplementedError


# Step 12: weights


def load_gpt2(folder: str | Path) -> GPT:
    """Load a GPT-2 in eval mode from a folder with Hugging Face's `config.json` and `model.safetensors`.

    The sizes in `config.json` are `vocab_size`, `n_positions`, `n_embd`, `n_head`, `n_layer`. The tensors have your
    parameters' names after the prefix `transformer.`. The matrices of linear layers are transposed there: [in, out].
    """
    raise NotImplementedError
