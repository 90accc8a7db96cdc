"""GPT-2 (Radford et al. 2019), from scratch."""

from gpt2core.model.config import GPTConfig
from gpt2core.model.gpt import GPT
from gpt2core.model.heads import GPTClassifier

__all__ = ["GPT", "GPTClassifier", "GPTConfig"]
