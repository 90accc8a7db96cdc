"""Text, one token after another: each new token is read again with all tokens before it."""

from __future__ import annotations

import tiktoken
import torch
from torch import Tensor, nn

from gpt2core.learn.dataset import Codec, Encoder
from gpt2core.learn.sampling import draw, keep_top_k, keep_top_p, scale_by_temperature


@torch.no_grad()
def generate_text_simple(model: nn.Module, idx: Tensor, max_new_tokens: int, context_size: int) -> Tensor:
    """Append the likeliest token repeatedly.

    Args:
        model: ids [B, T] to logits [B, T, V], in eval mode.
        idx: [B, P] int64.
        max_new_tokens: number of tokens to append.
        context_size: number of last tokens that the model can see.

    Returns:
        [B, P + max_new_tokens].
    """
    for _ in range(max_new_tokens):
        logits = model(idx[:, -context_size:])[:, -1]  # [B, V]
        idx = torch.cat([idx, logits.argmax(dim=-1, keepdim=True)], dim=1)  # [B, T + 1]
    return idx


@torch.no_grad()
def generate_by_sampling(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Tensor:
    """Append drawn tokens, after temperature, top-k, then top-p: [B, P] -> [B, P + max_new_tokens]."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for _ in range(max_new_tokens):
        logits = scale_by_temperature(model(idx[:, -context_size:])[:, -1], temperature)  # [B, V]
        if top_k is not None:
            logits = keep_top_k(logits, top_k)
        if top_p is not None:
            logits = keep_top_p(logits, top_p)
        idx = torch.cat([idx, draw(logits, generator)[:, None]], dim=1)  # [B, T + 1]
    return idx


@torch.no_grad()
def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
) -> Tensor:
    """Append tokens: the likeliest at temperature 0, otherwise draws by PyTorch from the k likeliest.

    Args:
        model: ids [B, T] to logits [B, T, V], in eval mode.
        idx: [B, P] int64.
        max_new_tokens: number of tokens to append.
        context_size: number of last tokens that the model can see.
        temperature: divides the logits.
        top_k: number of tokens to draw from; None: all.
        eos_id: stop when every text has drawn this token, which is not appended then.

    Returns:
        [B, P + max_new_tokens], or fewer columns.
    """
    for _ in range(max_new_tokens):
        logits = model(idx[:, -context_size:])[:, -1]  # [B, V]
        if top_k is not None:
            logits = keep_top_k(logits, top_k)
        if temperature > 0:
            new = torch.multinomial(scale_by_temperature(logits, temperature).softmax(dim=-1), num_samples=1)  # [B, 1]
        else:
            new = logits.argmax(dim=-1, keepdim=True)  # [B, 1]
        if eos_id is not None and bool((new == eos_id).all()):
            break
        idx = torch.cat([idx, new], dim=1)  # [B, T + 1]
    return idx


def text_to_token_ids(text: str, tokenizer: Encoder) -> Tensor:
    """Return the ids of a text, [1, T]; tiktoken's tokenizers read `<|endoftext|>` in it as the special token."""
    if isinstance(tokenizer, tiktoken.Encoding):
        return torch.tensor([tokenizer.encode(text, allowed_special={"<|endoftext|>"})])
    return torch.tensor([tokenizer.encode(text)])


def token_ids_to_text(token_ids: Tensor, tokenizer: Codec) -> str:
    """Return the text of ids, [1, T] or [T]."""
    return tokenizer.decode(token_ids.flatten().tolist())
