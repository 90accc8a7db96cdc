"""Spam or not: a GPT whose output layer has two rows instead of one per token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2core.learn.dataset import Encoder
from gpt2core.learn.gpt import GPTModel


def last_token_logits(model: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the logits at the last token of each text, the only one that has seen all of it.

    Args:
        model: ids [B, T] to logits [B, T, classes].
        ids: [B, T], padded on the right.
        lengths: [B], tokens of each text without padding.

    Returns:
        [B, classes].
    """
    return model(ids)[torch.arange(len(ids)), lengths - 1]


@torch.no_grad()
def classify_review(
    text: str,
    model: GPTModel,
    tokenizer: Encoder,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int = 50256,
) -> str:
    """Return "spam" or "not spam", read at the last token of the text, so that padding cannot change it.

    Args:
        text: one message.
        model: with an output layer of two rows, the second for spam.
        tokenizer: the model's tokenizer.
        device: the model's device.
        max_length: cut or pad to this number of tokens; if absent, only the context is a limit.
        pad_token_id: token id of the padding.
    """
    model.eval()
    limit = min(max_length or model.pos_emb.num_embeddings, model.pos_emb.num_embeddings)
    ids = tokenizer.encode(text)[:limit] or [pad_token_id]
    padded = ids + [pad_token_id] * ((max_length or 0) - len(ids))
    logits = last_token_logits(model, torch.tensor([padded], device=device), torch.tensor([len(ids)], device=device))
    return "spam" if logits.argmax().item() == 1 else "not spam"
