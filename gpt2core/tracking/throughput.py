"""Throughput of a training. Only MLflow gets it, because it differs from run to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

INTERVAL_S = 2.0  # several steps may be reported together
Log = Callable[[Mapping[str, Any], int], None]


def with_throughput(log: Log, interval_s: float = INTERVAL_S) -> Log:
    """Return `log` with `tokens_per_s` added every few seconds: the mean since the last time, with evaluations.

    Args:
        log: takes metrics and their step; those with a key `tokens` (seen so far) are timed.
        interval_s: shortest time that a rate is measured over.
    """
    since: tuple[float, float] | None = None  # time and tokens at the last rate

    def logged(metrics: Mapping[str, Any], step: int) -> None:
        nonlocal since
        if (tokens := metrics.get("tokens")) is not None:
            now_s = time.monotonic()
            if since is None:
                since = now_s, tokens
            elif now_s - since[0] >= interval_s:
                metrics = {**metrics, "tokens_per_s": (tokens - since[1]) / (now_s - since[0])}
                since = now_s, tokens
        log(metrics, step)

    return logged
