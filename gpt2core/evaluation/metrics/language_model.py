"""How well a model predicts a split: loss, perplexity, bits per byte; and what to hold beside them."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from gpt2core import runtime
from gpt2core.corpus.shards import Shard
from gpt2core.model import GPT
from gpt2core.model.inference import InferenceGPT

LOGIT_ROWS = 1024  # logits that are in memory at once: 1,024 x 50,257 of them are 206 MB


@torch.inference_mode()
def nats(
    model: GPT | InferenceGPT,
    tokens: np.ndarray,
    start_id: int,
    context: int,
    *,
    stride: int | None = None,
    batch_size: int = 16,
) -> float:
    """Total cross-entropy in nats of all tokens, each with at least `context - stride` before it (or all there are).

    Windows of `context` tokens start every `stride` tokens; only the last `stride` of each (all of the first) count.

    Args:
        model: in eval mode.
        tokens: [n]
        start_id: stands before the first token, so that it is predicted too: `<|endoftext|>`.
        stride: half of `context` if not given; the smaller, the more each token sees and the longer it takes.
    """
    device = model.transformer.wte.weight.device
    ids = torch.from_numpy(np.concatenate([[start_id], np.asarray(tokens, np.int64)]))  # [n + 1]
    n, stride = len(tokens), stride or max(1, context // 2)
    starts = [0, *range(stride, max(1, n - context + stride), stride)]
    total = 0.0
    for first in runtime.progress(range(0, len(starts), batch_size), what="evaluate", unit="batch"):
        windows = [ids[s : s + context + 1] for s in starts[first : first + batch_size]]
        batch = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=start_id)  # [B, T + 1]
        counts = torch.zeros(batch[:, 1:].shape, dtype=torch.bool)  # [B, T]
        for row, window in enumerate(windows):
            counts[row, 0 if first + row == 0 else context - stride : len(window) - 1] = True
        hidden = model.transformer(batch[:, :-1].to(device))[counts.to(device)]  # [n_counts, C]
        targets = batch[:, 1:][counts].to(device)  # [n_counts]
        for few, target in zip(hidden.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
            loss = F.cross_entropy(model.lm_head(few).float(), target, reduction="none")  # [rows]
            total += loss.double().sum().item()
    return total


def evaluate(model: GPT, shard: Shard, eot_id: int, context: int) -> dict[str, float]:
    """val_loss (nats a token), val_perplexity and bits_per_byte of a split.

    Bits per byte counts all the model says, `<|endoftext|>` included, over the bytes of the text; so it does not depend
    on the tokenizer, and no model can be below the entropy of the source.
    """
    model.eval()
    total = nats(model, shard.tokens, eot_id, context)
    loss = total / shard.n_tokens
    return {
        "val_loss": round(loss, 6),
        "val_perplexity": round(math.exp(min(loss, 700)), 4),
        "bits_per_byte": round(total / math.log(2) / shard.n_bytes, 6),
    }
