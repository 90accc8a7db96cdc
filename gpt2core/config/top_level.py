"""Parameters that are in no section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gpt2core.config.fields import Section, Seed

Numerics = Literal["portable", "native"]  # see gpt2core/numerics


class TopLevel(Section):
    """Parameters of all stages."""

    seed: Seed = Field(
        default=1234, description="for splits, initial weights, data order, dropout, and the embedded data"
    )
    numerics: Numerics = Field(
        default="portable",
        description="portable: the same bytes on every x86-64 CPU with AVX2 | native: as fast as this machine allows",
    )
