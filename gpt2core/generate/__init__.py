"""Generating tokens; works on ids alone and knows no text."""

from gpt2core.generate.engine import generate, generate_batch
from gpt2core.generate.sampling import Sampling

__all__ = ["Sampling", "generate", "generate_batch"]
