"""Metrics and baselines: of language models, classifiers, judges, and their intervals."""
