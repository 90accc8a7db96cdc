"""Evaluation: metrics, judges, lm-eval's tasks, and people's ratings."""
