"""Section `finetune_classify`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpt2core.config.fields import BaseName, Count, PositiveFloat, PositiveInt, Seed, SplitFraction
from gpt2core.config.lora import Lora
from gpt2core.config.optimization import Optimization


class FinetuneClassify(Lora, Optimization):
    """Fine-tuning of a classifier on `data.classification`."""

    base: BaseName = Field(
        default="pretrained", description="model directory under models/: pretrained | openai/SIZE | one of your own"
    )
    trainable: Literal["head", "last_block", "last_two_blocks", "all", "lora"] = Field(
        default="all",
        description="head | last_block | last_two_blocks | all | lora: low-rank adapters of frozen blocks",
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        default=[1, 2, 3],
        description="each with its own split and order; metrics are means, the first one's model is kept",
    )
    val_fraction: SplitFraction = Field(default=0.1, description="fraction of the messages of each class")
    test_fraction: SplitFraction = Field(default=0.2, description="fraction of the messages of each class")
    balance: bool = Field(default=True, description="sample the more frequent classes down to the rarest")
    drop_duplicates: bool = Field(
        default=True, description="leave out repeats of a text; repeats that stay are in one split"
    )
    epochs: PositiveInt = Field(default=3, description="passes over the training messages")
    max_tokens: PositiveInt | None = Field(
        default=None, description="messages are truncated to this; null: to the model's context"
    )
    position: Literal["last", "first", "mean", "padded"] = Field(
        default="last",
        description="what the head reads: the last token, as transformers does | first | mean of all | padded: the "
        "last of max_tokens, often padding, as in LLMs-from-scratch",
    )
    max_steps: PositiveInt | None = Field(
        default=None, description="stop after this number of steps; null: after all epochs"
    )

    batch_size: PositiveInt = Field(default=16, description="messages per micro-batch")
    lr: PositiveFloat = 0.0015
    warmup_steps: Count = 60
