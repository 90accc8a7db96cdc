"""Generation of token ids. Only `classify` and `respond` use a tokenizer."""

from gpt2core.inference.engine import generate, generate_batch, stream
from gpt2core.inference.sampling import Sampling
from gpt2core.inference.text import TextStream

__all__ = ["Sampling", "TextStream", "generate", "generate_batch", "stream"]
