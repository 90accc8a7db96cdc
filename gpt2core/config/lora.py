"""Parameters that both fine-tunings share: low-rank adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpt2core.config.fields import Fraction, PositiveFloat, PositiveInt, Section


class Lora(Section):
    """Adapters of `trainable: lora`."""

    lora_rank: PositiveInt = Field(default=8, description="lora: rank of each adapter; smaller rank = fewer parameters")
    lora_alpha: PositiveFloat = Field(default=16.0, description="lora: adapters are scaled by alpha / rank")
    lora_dropout: Fraction = Field(default=0.0, description="lora: dropout on the inputs of adapters")
    lora_targets: Annotated[
        list[Literal["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]], Field(min_length=1)
    ] = Field(
        default=["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
        description="lora: linear layers of a block that get an adapter",
    )
