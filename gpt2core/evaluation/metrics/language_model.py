"""Cross-entropy of a language model on windows of tokens: loss, perplexity, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core import runtime
from gpt2core.model import GPT
from gpt2core.model.inference import InferenceGPT

if TYPE_CHECKING:
    from gpt2core.corpus.shards import Shard
    from gpt2core.inference.batches import Batches
    from gpt2core.tokenizer import Tokenizer

LOGIT_ROWS = 1024  # rows of logits in memory at a time: 1,024 x 50,257 of them are 206 MB


def token_nats(model: GPT | InferenceGPT, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield nats [rows] and logits [rows, V] of targets [n], the tokens after hidden states [n, C], part by part."""
    for rows, target in zip(hidden.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
        logits = model.lm_head(rows).float()  # [rows, V]
        yield F.cross_entropy(logits, target, reduction="none"), logits


def nats(
    model: GPT | InferenceGPT,
    tokens: np.ndarray,
    start_id: int,
    context: int,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    batches: Batches | None = None,
) -> float:
    """Return the total cross-entropy of all tokens in nats.

    Windows of `context` tokens start every `stride` tokens; only the last `stride` targets of each window count (all of
    the first). Each token is predicted from at least `context - stride` tokens, or from all tokens before it.

    Args:
        model: in eval mode.
        tokens: [n]
        start_id: token before the first one, so that the first is predicted too: `<|endoftext|>`.
        context: length of a window in tokens.
        stride: half of `context` if None. A smaller one gives each token more context and takes longer.
        batch_size: windows per forward pass.
        batches: may compute the windows elsewhere with the same model; by default this process does.
    """
    ids = np.concatenate([[start_id], np.asarray(tokens, np.int64)])  # [n + 1]
    n, stride = len(tokens), stride or max(1, context // 2)
    starts = [0, *range(stride, max(1, n - context + stride), stride)]
    firsts = range(0, len(starts), batch_size)

    def work() -> Iterator[tuple[list[list[int]], list[int]]]:
        for first in firsts:
            windows = [ids[s : s + context + 1].tolist() for s in starts[first : first + batch_size]]
            counted_from = [0 if first + row == 0 else context - stride for row in range(len(windows))]
            yield windows, counted_from

    results = batches.map(window_nats, work()) if batches else starmap(partial(window_nats, model, None), work())
    total = 0.0
    for parts in runtime.progress(results, what="evaluate", unit="batch", total=len(firsts)):
        for part in parts:
            total += part
    return total


@torch.inference_mode()
def window_nats(
    model: GPT | InferenceGPT, _: Tokenizer | None, windows: Sequence[Sequence[int]], counted_from: Sequence[int]
) -> list[float]:
    """Return the cross-entropy of windows in nats; its sum is that of every window's targets from a number on.

    Args:
        model: in eval mode.
        windows: ids of each, at most one more than the context.
        counted_from: number of each window's first target that counts.
    """
    device = model.transformer.wte.weight.device
    rows = [torch.tensor(window) for window in windows]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [B, T + 1]
    counts = torch.zeros(batch[:, 1:].shape, dtype=torch.bool)  # [B, T]
    for row, (window, first) in enumerate(zip(windows, counted_from, strict=True)):
        counts[row, first : len(window) - 1] = True
    hidden = model.transformer(batch[:, :-1].to(device))[counts.to(device)]  # [n_counts, C]
    targets = batch[:, 1:][counts].to(device)  # [n_counts]
    return [loss.double().sum().item() for loss, _ in token_nats(model, hidden, targets)]


def evaluate(model: GPT, shard: Shard, eot_id: int, context: int) -> dict[str, float]:
    """Return val_loss (nats per token), val_perplexity, and bits_per_byte of a split.

    Bits per byte is the loss of all tokens, `<|endoftext|>` included, over the bytes of the text. Therefore it does not
    depend on the tokenizer, and no model can be below the entropy of the source.
    """
    model.eval()
    total = nats(model, shard.tokens, eot_id, context)
    loss = total / shard.n_tokens
    return {
        "val_loss": round(loss, 6),
        "val_perplexity": round(math.exp(min(loss, 700)), 4),
        "bits_per_byte": round(total / math.log(2) / shard.n_bytes, 6),
    }
