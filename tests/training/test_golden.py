"""Every training against its recorded curve; tests/golden/curves.py says when and how to record it anew."""

from __future__ import annotations

import pytest

from tests.golden.curves import COLUMNS, STEPS, TOLERANCE, recorded, run_all


@pytest.fixture(scope="module")
def curves() -> dict[str, list[float]]:
    return run_all()


@pytest.mark.parametrize("name", COLUMNS[1:])
def test_the_curve_is_the_recorded_one(curves: dict[str, list[float]], name: str) -> None:
    expected = recorded()[name]
    assert len(expected) == STEPS
    for step, (loss, was) in enumerate(zip(curves[name], expected, strict=True), start=1):
        assert loss == pytest.approx(was, rel=TOLERANCE), f"{name}, step {step}; if that was intended: make golden"
