"""How well a model predicts a split: loss, perplexity, bits per byte; and what to hold beside them."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from gpt2core.data.shards import Shard
from gpt2core.model import GPT


@torch.inference_mode()
def nats(model: GPT, tokens: np.ndarray, start_id: int, context: int, batch_size: int = 16) -> float:
    """Total cross-entropy in nats of all tokens, each with at least half a context before it (where there is so much).

    Windows of `context` tokens overlap by half, and only the second half of each (all of the first) counts.

    Args:
        tokens: [n]
        start_id: stands before the first token, so that it is predicted too: `<|endoftext|>`.
    """
    model.eval()
    device = model.transformer.wte.weight.device
    ids = torch.from_numpy(np.concatenate([[start_id], np.asarray(tokens, np.int64)]))  # [n + 1]
    n, stride = len(tokens), max(1, context // 2)
    starts = [0, *range(stride, max(1, n - context + stride), stride)]
    total = 0.0
    for first in range(0, len(starts), batch_size):
        windows = [ids[s : s + context + 1] for s in starts[first : first + batch_size]]
        batch = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=start_id).to(device)
        logits = model(batch[:, :-1])  # [B, T, V]
        loss = F.cross_entropy(logits.transpose(1, 2).float(), batch[:, 1:], reduction="none")  # [B, T]
        for row, window in enumerate(windows):
            done = 0 if first + row == 0 else context - stride
            total += loss[row, done : len(window) - 1].double().sum().item()
    return total


def evaluate(model: GPT, shard: Shard, eot_id: int, context: int) -> dict[str, float]:
    """val_loss (nats a token), val_perplexity and bits_per_byte of a split.

    Bits per byte counts all the model says, `<|endoftext|>` included, over the bytes of the text; so it does not depend
    on the tokenizer, and no model can be below the entropy of the source.
    """
    total = nats(model, shard.tokens, eot_id, context)
    loss = total / shard.n_tokens
    return {
        "val_loss": round(loss, 6),
        "val_perplexity": round(math.exp(min(loss, 700)), 4),
        "bits_per_byte": round(total / math.log(2) / shard.n_bytes, 6),
    }
