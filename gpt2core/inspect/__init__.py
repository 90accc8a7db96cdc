"""Tokens, attention, prediction of each layer, and loss of each token, for one text."""

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
