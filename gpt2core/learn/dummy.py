"""The shape of a GPT before its parts exist: ids in, logits out, and identities in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DummyGPTModel(nn.Module):
    """Embeddings and an output layer; the blocks and the final norm are identities until they are written.

    Args:
        cfg: the same keys as for `GPTModel`.
    """

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*(nn.Identity() for _ in range(cfg["n_layers"])))
        self.final_norm = nn.Identity()
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        """Return logits [B, T, V] for ids [B, T] int64."""
        positions = torch.arange(idx.size(1), device=idx.device)  # [T]
        x = self.drop_emb(self.tok_emb(idx) + self.pos_emb(positions))  # [B, T, C]
        return self.out_head(self.final_norm(self.trf_blocks(x)))
