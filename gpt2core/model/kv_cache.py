"""Keys and values of the tokens so far, so that generating a token does not compute the prefix again."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2core.model.config import GPTConfig


class LayerCache:
    """One layer's keys and values, preallocated: [B, H, max_tokens, D] each."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype):
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [B, H, T, D]; return all so far, [B, H, S, D]."""
        start, self.length = self.length, self.length + k.size(-2)
        self.k[:, :, start : self.length] = k
        self.v[:, :, start : self.length] = v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]

    def fill(self, other: LayerCache, places: Tensor) -> None:
        """Start all sequences with tokens [B, T] of the other cache's only one, given by their places there."""
        self.length = places.size(1)
        for own, k_or_v in ((self.k, other.k), (self.v, other.v)):
            own[:, :, : self.length] = k_or_v[0][:, places].transpose(0, 1)  # [H, B, T, D] -> [B, H, T, D]

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences except the given rows, which become rows 0, 1, …."""
        for name in ("k", "v"):
            all_rows = getattr(self, name)
            first_rows = all_rows[: len(rows)]  # a view: dropped rows stay allocated, but are not copied
            first_rows[:, :, : self.length] = all_rows[rows, :, : self.length]
            setattr(self, name, first_rows)


class KVCache:
    """The caches of all layers; B sequences of at most `max_tokens`."""

    def __init__(
        self, config: GPTConfig, batch_size: int, max_tokens: int, *, device: torch.device, dtype: torch.dtype
    ):
        shape = (batch_size, config.n_head, max_tokens, config.n_embd // config.n_head)
        self.layers = [LayerCache(shape, device, dtype) for _ in range(config.n_layer)]
        self.max_tokens = max_tokens

    def fill(self, other: KVCache, places: Tensor) -> None:
        """Start all sequences with tokens [B, T] of the other cache's only one, given by their places there."""
        for layer, other_layer in zip(self.layers, other.layers, strict=True):
            layer.fill(other_layer, places)

    def cut(self, length: int) -> None:
        """Drop all but the first `length` tokens."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    @property
    def length(self) -> int:
        """The number of tokens so far."""
        return self.layers[0].length

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences except the given rows, which become rows 0, 1, …."""
        for layer in self.layers:
            layer.keep(rows)
