"""Model sizes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

# The sizes of the GPT-2 paper (Radford et al. 2019, table 2), by OpenAI's names; `tiny` is ours, for two cores.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": dict(n_layer=4, n_head=4, n_embd=128, n_positions=256),
    "124M": dict(n_layer=12, n_head=12, n_embd=768, n_positions=1024),
    "355M": dict(n_layer=24, n_head=16, n_embd=1024, n_positions=1024),
    "774M": dict(n_layer=36, n_head=20, n_embd=1280, n_positions=1024),
    "1558M": dict(n_layer=48, n_head=25, n_embd=1600, n_positions=1024),
}

if TYPE_CHECKING:
    Preset = str
else:
    Preset = Literal[tuple(PRESETS)]
PRESET_NAMES = " | ".join(PRESETS)
