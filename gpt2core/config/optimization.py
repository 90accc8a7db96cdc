"""Parameters that the three trainings share: how they update the model's parameters."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from gpt2core.config.fields import Count, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Ratio, Section, Size


def _launcher(value: Any) -> str:
    if isinstance(value, str) and (value == "python" or re.search(r"\btorchrun\b|\btorch\.distributed\.run\b", value)):
        return value
    raise PydanticCustomError(
        "launcher", "Input should be python or a command of torchrun, such as torchrun --standalone --nproc-per-node=8"
    )


Launcher = Annotated[Any, PlainValidator(_launcher)]


class Optimization(Section):
    """Batches, optimizer, learning rate schedule, and precision. A training's section replaces single defaults."""

    batch_size: Size = Field(default=8, description="examples per micro-batch")
    grad_accum_steps: Size = Field(default=1, description="micro-batches per step")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the matrices of the blocks, AdamW for the rest | adamw: for all"
    )
    lr: PositiveFloat = Field(default=0.001, description="AdamW's learning rate at the end of the warm-up")
    muon_lr: PositiveFloat = Field(default=0.02, description="Muon's learning rate at the end of the warm-up")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        default="cosine",
        description="after the warm-up: cosine | linear | wsd: constant, then linear over decay_fraction | constant",
    )
    warmup_steps: Count = Field(default=0, description="steps in which the learning rate rises linearly")
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="wsd: fraction of the steps in which the learning rate falls"
    )
    min_lr_ratio: Ratio = Field(default=0.0, description="the schedule ends at this fraction of lr")
    weight_decay: NonNegativeFloat = Field(default=0.1, description="of matrices only")
    beta1: Fraction = Field(default=0.9, description="AdamW's decay rate of the mean gradient")
    beta2: Fraction = Field(default=0.95, description="AdamW's decay rate of the mean squared gradient")
    grad_clip: NonNegativeFloat = Field(default=1.0, description="largest gradient norm; 0: no limit")
    patience_evals: PositiveInt | None = Field(
        default=None,
        description="keep the weights with the lowest val_loss, stop after this many evals without a lower; null: last",
    )
    dropout: Fraction = Field(default=0.0, description="on embeddings, attention, and residual paths")
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32",
        description="float32 | bfloat16 (autocast; weights stay in float32) | auto (needs numerics: native)",
    )
    compile: bool | Literal["auto"] = Field(
        default=False, description="torch.compile: true | false | auto; true and auto need numerics: native"
    )
    activation_checkpointing: bool = Field(
        default=False, description="compute each block again for its gradient: far less memory, a third more time"
    )
    launcher: Launcher = Field(
        default="python",
        description="python | torchrun --standalone --nproc-per-node=8: one process for each of 8 GPUs; "
        "see docs/scaling.md",
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="of several processes: none: each has all weights | full: each has a part, for 1558M",
    )
