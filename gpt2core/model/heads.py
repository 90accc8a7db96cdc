"""A classifier on the hidden state of one position, or on the mean of all."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gpt2core.errors import UserError
from gpt2core.model.config import GPTConfig
from gpt2core.model.gpt import Block, Transformer, initialize


class GPTClassifier(nn.Module):
    """A Transformer and a linear head without bias: transformers' GPT2ForSequenceClassification.

    Args:
        config: the transformer's.
        labels: the classes' names, in the order of the logits.
        position: what the head reads: the `last` token, as transformers does; the `first`, which under causal attention
            has seen nothing but itself: texts that begin alike get one answer; or the `mean` of all.
    """

    def __init__(self, config: GPTConfig, labels: tuple[str, ...], position: str = "last"):
        super().__init__()
        if position not in ("last", "first", "mean"):
            raise UserError(f"position: {position!r} must be last, first or mean")
        self.config, self.labels, self.position = config, labels, position
        self.transformer = Transformer(config)
        self.score = nn.Linear(config.n_embd, len(labels), bias=False)
        initialize(self, config)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits of the classes; attention is causal, so padding on the right cannot matter.

        Args:
            ids: [B, T], padded on the right with anything.
            lengths: [B], the number of tokens of each row.

        Returns:
            [B, classes]
        """
        hidden = self.transformer(ids)  # [B, T, C]
        return self.score(self.pool(hidden, lengths))

    def forward_prefix(self, ids: Tensor, n_blocks: int) -> Tensor:
        """The hidden states after the first `n_blocks` blocks: [B, T] -> [B, T, C]"""
        positions = torch.arange(ids.size(1), device=ids.device)  # [T]
        x = self.transformer.drop(self.transformer.wte(ids) + self.transformer.wpe(positions))  # [B, T, C]
        for block in self.transformer.h[:n_blocks]:
            x = block(x)
        return x

    def forward_suffix(self, x: Tensor, lengths: Tensor, n_blocks: int) -> Tensor:
        """The logits, from what `lower` gave; of the last block only what the head reads.

        [B, T, C], [B] -> [B, classes]
        """
        blocks = [cast(Block, block) for block in self.transformer.h[n_blocks:]]
        last = blocks.pop() if blocks and self.position != "mean" else None
        for block in blocks:
            x = block(x)
        if last is None:
            return self.score(self.pool(self.transformer.ln_f(x), lengths))
        read = lengths - 1 if self.position == "last" else torch.zeros_like(lengths)
        return self.score(self.transformer.ln_f(last.forward_at(x, read)))

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """What the head reads of the hidden states [B, T, C] of rows with these lengths [B] -> [B, C]"""
        B, T, _ = hidden.shape
        if self.position == "first":
            return hidden[:, 0]
        if self.position == "last":
            return hidden[torch.arange(B, device=hidden.device), lengths - 1]
        is_token = torch.arange(T, device=hidden.device) < lengths[:, None]  # [B, T]
        return (hidden * is_token[..., None]).sum(1) / lengths[:, None]  # [B, C]
