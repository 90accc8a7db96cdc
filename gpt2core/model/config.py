"""The model's shape, under the names of transformers' GPT2Config."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gpt2core.errors import UserError

POSITIONS = ("last", "first", "mean", "padded")  # what a classifier's head reads


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and switches of a GPT-2. Raises UserError if they contradict each other."""

    vocab_size: int
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    qkv_bias: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.n_embd % self.n_head:
            raise UserError(f"n_head: {self.n_head} heads do not divide the width n_embd {self.n_embd}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)
