"""Tokens a second, by a clock that the test sets."""

from __future__ import annotations

import pytest

from gpt2core.tracking import throughput


def test_a_rate_is_of_the_time_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([10.0, 11.0, 14.0, 15.0, 16.0])
    monkeypatch.setattr(throughput.time, "monotonic", lambda: next(now_s))
    logged: list[tuple[dict, int]] = []
    log = throughput.with_throughput(lambda metrics, step: logged.append((dict(metrics), step)), interval_s=2.0)
    for step, metrics in enumerate(
        ({"tokens": 500}, {"tokens": 600}, {"tokens": 900}, {"val_loss": 1.0}, {"tokens": 1000}, {"tokens": 1300})
    ):
        log(metrics, step)
    assert [metrics.get("tokens_per_s") for metrics, _ in logged] == [None, None, 100.0, None, None, 200.0]
    assert [step for _, step in logged] == list(range(6))
    assert logged[3][0] == {"val_loss": 1.0}
