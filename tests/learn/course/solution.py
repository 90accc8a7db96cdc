"""Your GPT-2. Fill in one step after the other; `pytest examples/course -x` says whether a step is correct.

The README next to this file has the steps and hints. Shapes: B batch, T tokens, C channels (`emb_dim`), H heads
(`n_heads`), D = C / H head size, V vocabulary.
"""

from __future__ import annotations

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
    return re.findall(r"\w+|[^\w\s]", text)


def build_vocab(words: Sequence[str]) -> dict[str, int]:
    """Map the distinct words, in alphabetical order, to 0, 1, 2, and so on."""
    return {word: number for number, word in enumerate(sorted(set(words)))}


def encode_words(text: str, vocab: dict[str, int]) -> list[int]:
    """Return the ids of the words of a text."""
    return [vocab[word] for word in split_words(text)]


def decode_words(ids: Sequence[int], vocab: dict[str, int]) -> str:
    """Return the words of ids, with a space between each two."""
    words = {number: word for word, number in vocab.items()}
    return " ".join(words[number] for number in ids)


# Step 2: byte-pair encoding

Pair = tuple[int, int]


def count_pairs(ids: Sequence[int]) -> Counter[Pair]:
    """Count the pairs of adjacent ids."""
    return Counter(zip(ids, ids[1:], strict=False))


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each occurrence of the pair, from the left, by the new id.

    >>> merge([1, 2, 1, 2, 2], (1, 2), 9)
    [9, 9, 2]
    """
    merged: list[int] = []
    for number in ids:
        merged.append(number)
        if tuple(merged[-2:]) == pair:
            merged[-2:] = [new_id]
    return merged


def train_bpe(text: str, n_merges: int) -> list[Pair]:
    """Learn merges, starting from the bytes of a text; merge number n makes the id 256 + n.

    Merge the most frequent pair, and of equally frequent pairs the smallest. Stop early if no pair is left.
    """
    ids, merges = list(text.encode()), []
    while len(merges) < n_merges and (counts := count_pairs(ids)):
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        ids = merge(ids, pair, 256 + len(merges))
        merges.append(pair)
    return merges


def encode(text: str, merges: Sequence[Pair]) -> list[int]:
    """Return the ids of a text: its bytes, merged in the order in which the merges were learned."""
    ids = list(text.encode())
    for number, pair in enumerate(merges):
        ids = merge(ids, pair, 256 + number)
    return ids


def decode(ids: Sequence[int], merges: Sequence[Pair]) -> str:
    """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
    spelled = {number: bytes([number]) for number in range(256)}
    for number, (left, right) in enumerate(merges):
        spelled[256 + number] = spelled[left] + spelled[right]
    return b"".join(spelled[number] for number in ids).decode(errors="replace")


# Step 3: embeddings


def windows(ids: Sequence[int], length: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return all windows of a text and their targets, the next ids: [n, length] and [n, length], int64.

    A window starts at 0, `stride`, 2 · `stride` …, as long as it and its last target are in the text.

    >>> windows([10, 11, 12, 13, 14, 15], length=3, stride=2)[1]
    tensor([[11, 12, 13],
            [13, 14, 15]])
    """
    starts = range(0, len(ids) - length, stride)
    inputs = [list(ids[start : start + length]) for start in starts]
    targets = [list(ids[start + 1 : start + length + 1]) for start in starts]
    return torch.tensor(inputs), torch.tensor(targets)


def embed(ids: Tensor, token_table: Tensor, position_table: Tensor) -> Tensor:
    """Add the vector of each token and the vector of its position: ids [B, T] -> [B, T, C].

    Args:
        ids: [B, T] int64.
        token_table: [V, C], a row per token.
        position_table: [maximum T, C], a row per position.
    """
    return token_table[ids] + position_table[: ids.size(1)]


# Step 4: softmax and cross-entropy


def softmax(x: Tensor) -> Tensor:
    """Return e^x over their sum along the last dimension, also where e^x is too large for float32."""
    exponentials = torch.exp(x - x.amax(dim=-1, keepdim=True))
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -ln p(target): logits [N, V] and targets [N] int64 -> []."""
    return -softmax(logits)[torch.arange(len(targets)), targets].log().mean()


# Step 5: gradient descent


def descend(parameters: Sequence[Tensor], lr: float) -> None:
    """Take one step of gradient descent in place: subtract lr times the gradient, then set the gradient to None."""
    with torch.no_grad():
        for parameter in parameters:
            parameter -= lr * parameter.grad
            parameter.grad = None


def minimize(loss: Callable[[], Tensor], parameters: Sequence[Tensor], lr: float, n_steps: int) -> list[float]:
    """Take steps of gradient descent; return the loss before each step."""
    losses = []
    for _ in range(n_steps):
        value = loss()
        value.backward()
        descend(parameters, lr)
        losses.append(value.item())
    return losses


# Step 6: attention


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √D) v, where token t sees tokens up to t only: three times [..., T, D] -> [..., T, D]."""
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # [..., T, T]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    return softmax(scores.masked_fill(future, float("-inf"))) @ v


# Step 7: multi-head attention


class MultiHeadAttention(nn.Module):
    """Causal self-attention with H heads.

    Parts, named as in GPT-2: `c_attn`, a linear layer from C to 3C for queries, keys, and values; `c_proj`, a linear
    layer from C to C for the concatenated heads.
    """

    def __init__(self, emb_dim: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.c_attn = nn.Linear(emb_dim, 3 * emb_dim)
        self.c_proj = nn.Linear(emb_dim, emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens so far for each token: [B, T, C] -> [B, T, C]."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_heads, C // self.n_heads).transpose(1, 2)  # [B, H, T, D]
            for part in self.c_attn(x).split(C, dim=-1)
        )
        mixed = causal_attention(q, k, v)  # [B, H, T, D]
        return self.c_proj(mixed.transpose(1, 2).reshape(B, T, C))


# Step 8: the block


class LayerNorm(nn.Module):
    """Layer norm: each token's channels get mean 0 and variance 1, then are multiplied by `weight` and added to `bias`.

    Parts: `weight` [C], initialized with ones; `bias` [C], initialized with zeros. Add 1e-5 to the variance.
    """

    def __init__(self, emb_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(emb_dim))
        self.bias = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension: [B, T, C] -> [B, T, C]."""
        centered = x - x.mean(dim=-1, keepdim=True)
        variance = centered.pow(2).mean(dim=-1, keepdim=True)
        return self.weight * centered / torch.sqrt(variance + 1e-5) + self.bias


def gelu(x: Tensor) -> Tensor:
    """Return GELU in the tanh form, with which GPT-2 was trained: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """Two linear layers with GELU in between. Parts: `c_fc` from C to 4C, `c_proj` from 4C to C."""

    def __init__(self, emb_dim: int):
        super().__init__()
        self.c_fc = nn.Linear(emb_dim, 4 * emb_dim)
        self.c_proj = nn.Linear(4 * emb_dim, emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to each token: [B, T, C] -> [B, T, C]."""
        return self.c_proj(gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention, then feed-forward; each reads a layer norm of the residual path and adds to the path.

    Parts: `ln_1`, `attn`, `ln_2`, `mlp`.
    """

    def __init__(self, emb_dim: int, n_heads: int):
        super().__init__()
        self.ln_1, self.attn = LayerNorm(emb_dim), MultiHeadAttention(emb_dim, n_heads)
        self.ln_2, self.mlp = LayerNorm(emb_dim), FeedForward(emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both: [B, T, C] -> [B, T, C]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


# Step 9: GPT


class GPT(nn.Module):
    """The language model: ids in, logits of the next token out.

    Parts: `wte` and `wpe`, `nn.Embedding`s of tokens and positions, both initialized with normal(0, 0.02); `h`, an
    `nn.ModuleList` of blocks; `ln_f`, the final layer norm. The output layer is the token embedding: it multiplies by
    `wte.weight` transposed and has no parameters of its own.
    """

    def __init__(self, vocab_size: int, context_length: int, emb_dim: int, n_heads: int, n_layers: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, emb_dim), nn.Embedding(context_length, emb_dim)
        self.h = nn.ModuleList(Block(emb_dim, n_heads) for _ in range(n_layers))
        self.ln_f = LayerNorm(emb_dim)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits: ids [B, T] int64 -> [B, T, V]."""
        x = embed(ids, self.wte.weight, self.wpe.weight)
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


# Step 10: training


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> float:
    """Take one step on inputs and targets, [B, T] each; return the loss before the step."""
    loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(model: GPT, ids: Sequence[int], n_steps: int, batch_size: int = 8, lr: float = 3e-3) -> list[float]:
    """Train with `torch.optim.AdamW` on random windows of the model's context length; return the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    inputs, targets = windows(ids, model.wpe.num_embeddings, stride=1)
    losses = []
    for _ in range(n_steps):
        rows = torch.randint(len(inputs), (batch_size,))
        losses.append(train_step(model, optimizer, inputs[rows], targets[rows]))
    return losses


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
    for _ in range(max_new_tokens):
        logits = model(ids[:, -model.wpe.num_embeddings :])[:, -1]  # [B, V]
        if temperature == 0:
            new = logits.argmax(dim=-1, keepdim=True)  # [B, 1]
        else:
            if top_k is not None:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
            new = torch.multinomial(softmax(logits / temperature), 1)  # [B, 1]
        ids = torch.cat([ids, new], dim=1)
    return ids


# Step 12: weights


def load_gpt2(folder: str | Path) -> GPT:
    """Load a GPT-2 in eval mode from a folder with Hugging Face's `config.json` and `model.safetensors`.

    The sizes in `config.json` are `vocab_size`, `n_positions`, `n_embd`, `n_head`, `n_layer`. The tensors have your
    parameters' names after the prefix `transformer.`. The matrices of linear layers are transposed there: [in, out].
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    model = GPT(config["vocab_size"], config["n_positions"], config["n_embd"], config["n_head"], config["n_layer"])
    state = {}
    for name, tensor in load_file(Path(folder) / "model.safetensors").items():
        is_linear = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        state[name.removeprefix("transformer.")] = tensor.T if is_linear else tensor
    model.load_state_dict(state)
    return model.eval()
