"""Section `pretrain`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpt2core.config.fields import Count, PositiveFloat, PositiveInt, Size, Text
from gpt2core.config.optimization import Optimization
from gpt2core.config.presets import PRESET_NAMES, PRESETS, Preset
from gpt2core.config.warm_start import NO_BASE, Base


class Pretrain(Optimization):
    """The model and its pretraining."""

    base: Base = NO_BASE
    preset: Preset = Field(default="tiny", description=f"{PRESET_NAMES}; the next four replace single sizes")
    n_layer: Annotated[int, Field(gt=0, le=10_000)] | None = Field(default=None, description="blocks")
    n_head: Size | None = Field(default=None, description="attention heads per block; must divide n_embd")
    n_embd: Annotated[int, Field(gt=0, le=1 << 17)] | None = Field(default=None, description="hidden size, in channels")
    n_positions: Size | None = Field(default=None, description="longest text, in tokens")
    qkv_bias: bool = Field(default=True, description="queries, keys, and values have a bias, as in GPT-2")
    tie_weights: bool = Field(default=True, description="the output head is the token embedding, as in GPT-2")
    initializer_range: PositiveFloat = Field(
        default=0.06,
        description="standard deviation of initial weights; GPT-2: 0.02; narrow models learn to copy with more",
    )
    init: Literal["random", "induction"] = Field(
        default="random",
        description="random | induction: with a circuit that copies, for texts too few to learn it from",
    )
    trainable: Literal["last_two_blocks", "blocks", "all"] = Field(
        default="all", description="last_two_blocks: an induction circuit below them stays as it is | blocks | all"
    )
    context: Size = Field(default=256, description="tokens per window; at most n_positions")
    max_steps: PositiveInt = Field(default=480, description="number of steps")
    continued_steps: PositiveInt | None = Field(
        default=None,
        description="then this number of steps on data.continued_corpus, with a warm-up and a schedule of their own",
    )
    continued_lr_ratio: PositiveFloat = Field(
        default=0.1, description="continued_steps only: fraction of lr and muon_lr"
    )
    eval_interval_steps: PositiveInt = Field(
        default=80, description="steps between evaluations, each with a sample of text"
    )
    eval_batches: Size = Field(
        default=8, description="batches of validation windows per evaluation; the final metric covers the whole split"
    )
    sample_prompt: Text = Field(default="", description="start of the samples; empty: the start of a document")
    sample_tokens: Size = Field(default=200, description="longest sample")
    batch_size: Size = Field(default=8, description="windows per micro-batch")
    optimizer: Literal["adamw", "muon"] = "muon"
    lr: PositiveFloat = 0.006
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "linear"
    warmup_steps: Count = 60

    @property
    def has_base(self) -> bool:
        """Whether the training starts with the weights of another model."""
        return self.base != NO_BASE

    def sizes(self) -> dict[str, int]:
        """Return n_layer, n_head, n_embd, and n_positions without a base: the preset's, unless replaced."""
        return {key: getattr(self, key) or value for key, value in PRESETS[self.preset].items()}

    def undivided(self, n_processes: int) -> str:
        """Return why a step cannot be divided between this number of processes, or an empty string."""
        windows = self.grad_accum_steps * self.batch_size
        if windows % n_processes == 0:
            return ""
        return (
            f"pretrain.launcher: {n_processes} processes do not divide the {windows} windows of a step "
            f"(grad_accum_steps {self.grad_accum_steps} * batch_size {self.batch_size}); "
            f"allowed: {', '.join(str(n) for n in range(1, windows + 1) if windows % n == 0)}"
        )
