"""Classification of texts: encoding, and prediction in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt2core import runtime
from gpt2core.inference.sampling import check_finite
from gpt2core.model import GPTClassifier
from gpt2core.tokenizer import Tokenizer

BATCH_SIZE = 64
BATCH_TOKENS = 8192  # of a batch of any texts: 100 MB per activation of width 3,072


class Prediction(NamedTuple):
    """The most probable class of a text, and the probability of every class."""

    label: str
    probabilities: dict[str, float]


def classify(model: GPTClassifier, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Prediction]:
    """Return the class of each text, in the order of `texts`. A text is truncated to the model's context.

    Example:
        >>> model, tokenizer = gpt2core.load_classifier("models/classifier")  # doctest: +SKIP
        >>> gpt2core.classify(model, tokenizer, ["You won a free lamp!"])[0].label  # doctest: +SKIP
        'spam'
    """
    if not texts:
        return []
    is_padded = model.position == "padded"
    ids, _ = encode(texts, tokenizer, model.config.n_positions, model.padded_length, is_padded=is_padded)
    batch_size = max(1, min(BATCH_SIZE, BATCH_TOKENS // max(map(len, ids))))
    rows = Texts(model, ids).predict(batch_size=batch_size).softmax(-1).tolist()  # [n, classes]
    return [Prediction(model.labels[row.index(max(row))], dict(zip(model.labels, row, strict=True))) for row in rows]


def encode(
    texts: Sequence[str], tokenizer: Tokenizer, n_positions: int, max_tokens: int | None, *, is_padded: bool = False
) -> tuple[list[list[int]], int]:
    """Return the ids of each text, truncated to the model's context (or `max_tokens`), and the number of cut texts.

    With `is_padded`, shorter texts are padded to that length with `<|endoftext|>`.
    """
    limit = min(max_tokens or n_positions, n_positions)
    ids = [tokenizer.encode(text) for text in texts]
    n_truncated = sum(len(row) > limit for row in ids)
    n_least = limit if is_padded else 1
    return [row[:limit] + [tokenizer.eot_id] * (n_least - len(row)) for row in ids], n_truncated


class Texts:
    """Encoded texts for one classifier: rows of at least one id."""

    def __init__(self, model: GPTClassifier, ids: Sequence[Sequence[int]]):
        self.model, self.ids = model, ids
        self.lengths = [len(row) for row in ids]

    def batch(self, rows: Sequence[int], pad_id: int = 0) -> tuple[Tensor, Tensor]:
        """Return the inputs of `logits` for these rows: ids [B, T], padded on the right, and lengths [B]."""
        ids = [torch.tensor(self.ids[i]) for i in rows]
        return pad_sequence(ids, batch_first=True, padding_value=pad_id), self._lengths(rows)

    def logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits [B, classes] of ids [B, T] with lengths [B]."""
        return self.model(ids, lengths)

    @torch.inference_mode()
    def predict(self, rows: Sequence[int] | None = None, batch_size: int = BATCH_SIZE) -> Tensor:
        """Return the logits of these rows (or all), [n, classes]; texts of similar length share a batch."""
        self.model.eval()
        device = self.model.score.weight.device
        rows = range(len(self.ids)) if rows is None else rows
        logits = torch.empty(len(rows), len(self.model.labels))
        batches = by_length([self.lengths[i] for i in rows], batch_size)
        for places in runtime.progress(batches, what="classify", unit="batch"):
            inputs = (tensor.to(device) for tensor in self.batch([rows[place] for place in places]))
            logits[places] = self.logits(*inputs).float().cpu()
        check_finite(logits)
        return logits

    def _lengths(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor([self.lengths[i] for i in rows])


def by_length(lengths: Sequence[int], batch_size: int = BATCH_SIZE) -> list[list[int]]:
    """Return the indices of all lengths in batches, the shortest first, so that batches have little padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
