"""Nested values as flat ones, as MLflow takes them."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots.

    >>> flatten({"seed": 1, "pretrain": {"lr": 0.1}})
    {'seed': 1, 'pretrain.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among (nested) metrics, flattened.

    >>> numbers({"loss": 1, "by_seed": {"7": 0.5}, "judge": "chrf", "n": None})
    {'loss': 1.0, 'by_seed.7': 0.5}
    """
    flat = flatten(metrics)
    return {k: float(v) for k, v in flat.items() if isinstance(v, Real) and not isinstance(v, bool)}
