"""Parameters, operations, and bytes of a GPT-2, by formula.

`cfg` has the keys of `GPTModel`. V vocabulary, T tokens, C channels, L layers.
"""

from __future__ import annotations

from typing import Any

from gpt2core.config.presets import PRESETS


def gpt2_config(size: str) -> dict[str, Any]:
    """Return the sizes of a GPT-2 by OpenAI's name (124M, 355M, 774M, 1558M), as a dict for `GPTModel`."""
    preset = PRESETS[size]
    return dict(
        vocab_size=50257, context_length=preset["n_positions"], emb_dim=preset["n_embd"], n_heads=preset["n_head"],
        n_layers=preset["n_layer"], drop_rate=0.1, qkv_bias=True, tie_weights=True,
    )  # fmt: skip


def parameter_counts(cfg: dict[str, Any]) -> dict[str, int]:
    """Return the number of parameters of each kind of part; the sum is the model's."""
    V, T, C, L = cfg["vocab_size"], cfg["context_length"], cfg["emb_dim"], cfg["n_layers"]
    return {
        "token embedding": V * C,
        "position embedding": T * C,
        "attention": L * (4 * C * C + (4 if cfg["qkv_bias"] else 1) * C),  # q, k, v, output
        "feed-forward": L * (8 * C * C + 5 * C),  # C -> 4C -> C
        "norms": (2 * L + 1) * 2 * C,
        "output layer": 0 if cfg.get("tie_weights") else V * C,
    }


def forward_flops(cfg: dict[str, Any], n_tokens: int) -> int:
    """Return the operations of one forward pass over a text; a multiplication and an addition count as two.

    Only matrix products count, the rest is less than a hundredth. The backward pass costs twice as much.
    """
    V, T, C, L = cfg["vocab_size"], n_tokens, cfg["emb_dim"], cfg["n_layers"]
    weights = L * 12 * C * C + V * C  # each is multiplied once per token
    scores = L * 2 * T * C  # q kᵀ and weights · v, for one token, the masked half included
    return 2 * T * (weights + scores)


def training_bytes(n_parameters: int) -> dict[str, int]:
    """Return the memory that AdamW needs in float32, in bytes, without activations."""
    return {name: 4 * n_parameters for name in ("weights", "gradients", "first moments", "second moments")}


def kv_cache_bytes(cfg: dict[str, Any], n_tokens: int, batch_size: int = 1, bytes_per_number: int = 4) -> int:
    """Return the memory of the keys and values of a text while generating, in bytes."""
    return 2 * cfg["n_layers"] * batch_size * n_tokens * cfg["emb_dim"] * bytes_per_number
