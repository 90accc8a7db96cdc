"""The embedded data: tales, messages and instructions written by grammars, from a seed."""

from __future__ import annotations

from gpt2core.sources.synthetic.instructions import generate_instructions
from gpt2core.sources.synthetic.messages import generate_messages
from gpt2core.sources.synthetic.tales import generate_tales, log2_probability, parses_sentence, split_sentences

__all__ = [
    "generate_instructions", "generate_messages", "generate_tales", "log2_probability", "parses_sentence",
    "split_sentences",
]  # fmt: skip
