"""A classifier on the hidden state of one position, or on the mean of all."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gpt2core.errors import UserError
from gpt2core.model.config import POSITIONS, GPTConfig
from gpt2core.model.gpt import Block, Transformer, initialize


class GPTClassifier(nn.Module):
    """A transformer and a linear head without bias: transformers' GPT2ForSequenceClassification.

    Args:
        config: of the transformer.
        labels: names of the classes, in the order of the logits.
        position: input of the head: the `last` token, as in transformers; the `first`, which sees only itself under
            causal attention, so texts that start with the same token get the same class; the `mean` of all; or
            `padded`: the last one of texts that are padded to `padded_length`, often padding, as in LLMs-from-scratch.
        padded_length: tokens of each text, only with `padded`.
    """

    def __init__(
        self, config: GPTConfig, labels: tuple[str, ...], position: str = "last", padded_length: int | None = None
    ):
        super().__init__()
        if position not in POSITIONS:
            raise UserError(f"position: {position!r} must be {', '.join(POSITIONS[:-1])} or {POSITIONS[-1]}")
        if (position == "padded") != (padded_length is not None):
            raise UserError(f"padded_length: {padded_length} with position {position!r}; 'padded' alone has a number")
        if not 1 <= (padded_length or 1) <= config.n_positions:
            raise UserError(
                f"padded_length: {padded_length} must be from 1 to the model's {config.n_positions} positions"
            )
        self.config, self.labels, self.position, self.padded_length = config, labels, position, padded_length
        self.transformer = Transformer(config)
        self.score = nn.Linear(config.n_embd, len(labels), bias=False)
        initialize(self, config)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits [B, classes] of ids [B, T] with these numbers of tokens [B].

        Attention is causal, so padding on the right cannot matter.
        """
        hidden = self.transformer(ids)  # [B, T, C]
        return self.score(self.pool(hidden, lengths))

    def forward_prefix(self, ids: Tensor, n_blocks: int) -> Tensor:
        """Return the hidden states after the first `n_blocks` blocks: [B, T] -> [B, T, C]."""
        positions = torch.arange(ids.size(1), device=ids.device)  # [T]
        x = self.transformer.drop(self.transformer.wte(ids) + self.transformer.wpe(positions))  # [B, T, C]
        for block in self.transformer.h[:n_blocks]:
            x = block(x)
        return x

    def forward_suffix(self, x: Tensor, lengths: Tensor, n_blocks: int) -> Tensor:
        """Return the logits [B, classes] from the output of `forward_prefix` [B, T, C], rows of these lengths [B].

        The last block computes only the head's position.
        """
        blocks = [cast(Block, block) for block in self.transformer.h[n_blocks:]]
        last = blocks.pop() if blocks and self.position != "mean" else None
        for block in blocks:
            x = block(x)
        if last is None:
            return self.score(self.pool(self.transformer.ln_f(x), lengths))
        read = torch.zeros_like(lengths) if self.position == "first" else lengths - 1
        return self.score(self.transformer.ln_f(last.forward_at(x, read)))

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Return the head's input [B, C] from hidden states [B, T, C] of rows with these lengths [B]."""
        B, T, _ = hidden.shape
        if self.position == "first":
            return hidden[:, 0]
        if self.position != "mean":  # of padded texts, the lengths are those with their padding
            return hidden[torch.arange(B, device=hidden.device), lengths - 1]
        is_token = torch.arange(T, device=hidden.device) < lengths[:, None]  # [B, T]
        return (hidden * is_token[..., None]).sum(1) / lengths[:, None]  # [B, C]
