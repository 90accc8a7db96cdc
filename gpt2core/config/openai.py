"""Section `openai`."""

from __future__ import annotations

from pydantic import Field

from gpt2core.config.fields import Section
from gpt2core.config.presets import PRESET_NAMES, Preset


class OpenAI(Section):
    """OpenAI's weights."""

    sizes: list[Preset] = Field(
        default=["tiny"],
        description=f"to fetch and convert: {PRESET_NAMES} (0.5 to 6.2 GB each; tiny is in the package)",
    )
