"""Section `finetune_instruct`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpt2core.config.fields import BaseName, Count, PositiveFloat, PositiveInt, Seed, SplitFraction
from gpt2core.config.lora import Lora
from gpt2core.config.optimization import Optimization


class FinetuneInstruct(Lora, Optimization):
    """Fine-tuning on `data.instructions`."""

    base: BaseName = Field(
        default="pretrained", description="model directory under models/: pretrained | openai/SIZE | one of your own"
    )
    trainable: Literal["last_two_blocks", "blocks", "all", "lora"] = Field(
        default="all",
        description="last_two_blocks | blocks: all, without embeddings and head | all | lora: low-rank adapters",
    )
    lora_base_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = Field(
        default="float32",
        description="lora: of frozen blocks while training: float32 | bfloat16 | int8 | nf4, for large models",
    )
    prompt: Literal["alpaca", "phi3"] = Field(
        default="alpaca", description="prompt template: alpaca | phi3; kept as the chat template of the model"
    )
    mask_prompt: bool = Field(default=True, description="only tokens of the response count in the loss")
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = Field(
        default=None,
        description="such as [1, 2, 3]: one training per seed, in one table; the first one's model is kept; null: seed",
    )
    val_fraction: SplitFraction = Field(default=0.05, description="fraction of the entries")
    test_fraction: SplitFraction = Field(default=0.1, description="fraction of the entries")
    split: Literal["random", "ordered"] = Field(
        default="random",
        description="random: entries that share an input are in one split | ordered: training first, then test, then "
        "validation, as in LLMs-from-scratch",
    )
    epochs: PositiveInt = Field(default=2, description="passes over the training entries")
    max_steps: PositiveInt | None = Field(
        default=None, description="stop after this number of steps; null: after all epochs"
    )
    checkpoint_steps: list[PositiveInt] = Field(
        default=[], description="steps after which the test set is answered as well, each a row of the judge's table"
    )
    max_new_tokens: PositiveInt = Field(default=48, description="longest response, in tokens")

    batch_size: PositiveInt = Field(default=8, description="entries per micro-batch, of similar length")
    lr: PositiveFloat = 0.0025
    warmup_steps: Count = 40

    @property
    def frozen_dtype(self) -> Literal["bfloat16", "int8", "nf4"] | None:
        """The dtype of quantized base weights; None: they are not quantized."""
        return None if self.lora_base_dtype == "float32" else self.lora_base_dtype

    @property
    def is_tabled(self) -> bool:
        """Whether there is more to compare than the model before and after."""
        return len(self.seeds or ()) > 1 or bool(self.checkpoint_steps)
