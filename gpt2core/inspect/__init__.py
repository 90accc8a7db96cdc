"""Look inside a model while it reads a text: its tokens, attention, what each layer would say, each token's loss."""

from gpt2core.inspect.inspection import Candidate, ClassifierInspection, Inspection, LanguageModelInspection, inspect
from gpt2core.inspect.trace import Trace, trace

__all__ = [
    "Candidate",
    "ClassifierInspection",
    "Inspection",
    "LanguageModelInspection",
    "Trace",
    "inspect",
    "trace",
]
