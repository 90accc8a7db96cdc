"""Judges: each scores responses from 0 to 100 and compares two responses.

`chrf` compares with the reference answer. The others are language models: their prompts are in `questions.py`, the
requests in `language_model.py`, and the models in `openai.py` (a server) and `local.py` (a model directory).
"""

from gpt2core.evaluation.judges.judge import Item, Judge, Pair, Preference
from gpt2core.evaluation.judges.registry import make_judges

__all__ = ["Item", "Judge", "Pair", "Preference", "make_judges"]
