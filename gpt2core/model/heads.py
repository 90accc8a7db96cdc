"""A classifier on the hidden state of the last token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2core.model.config import GPTConfig
from gpt2core.model.gpt import Transformer, initialize


class GPTClassifier(nn.Module):
    """A Transformer and a linear head without bias: transformers' GPT2ForSequenceClassification.

    Args:
        config: the transformer's.
        labels: the classes' names, in the order of the logits.
    """

    def __init__(self, config: GPTConfig, labels: tuple[str, ...]):
        super().__init__()
        self.config, self.labels = config, labels
        self.transformer = Transformer(config)
        self.score = nn.Linear(config.n_embd, len(labels), bias=False)
        initialize(self, config)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits of the classes, read at each row's last token; attention is causal, so what follows it cannot matter.

        Args:
            ids: [B, T], padded on the right with anything.
            lengths: [B], the number of tokens of each row.

        Returns:
            [B, classes]
        """
        hidden = self.transformer(ids)  # [B, T, C]
        last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]  # [B, C]
        return self.score(last)
