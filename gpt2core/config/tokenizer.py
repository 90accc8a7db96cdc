"""Section `tokenizer`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpt2core.config.fields import Section, SplitFraction


class Tokenizer(Section):
    """The tokenizer, and the split of the corpus."""

    kind: Literal["bpe", "gpt2", "char"] = Field(
        default="bpe", description="bpe: learned from the corpus | gpt2: GPT-2's own | char: one token per character"
    )
    vocab_size: Annotated[int, Field(ge=257, le=65536)] = Field(
        default=960, description="bpe only: 256 bytes, merges, and <|endoftext|>"
    )
    val_fraction: SplitFraction = Field(
        default=0.1,
        description="fraction of the documents (if fewer than 20: the end of each one), if the source names no split",
    )
    drop_duplicates: bool = Field(
        default=False, description="leave out each document that has the same bytes as an earlier one"
    )
    shuffle: bool = Field(default=False, description="put the training documents in a random order, by seed")
