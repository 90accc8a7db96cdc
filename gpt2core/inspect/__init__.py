"""Tokens, attention, prediction of each layer, and loss of each token, for one text."""

from gpt2core.inspect.inspection import ClassifierInspection, Inspection, LanguageModelInspection, inspect

__all__ = ["ClassifierInspection", "Inspection", "LanguageModelInspection", "inspect"]
