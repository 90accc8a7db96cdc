"""The kernels of `numerics: portable` against float64; check_kernels.py computes in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("check_kernels.py")
MIN_CHECKS = {
    "products torch.float32": 150, "products torch.float64": 150, "products torch.bfloat16": 150, "gradients": 4,
    "attention": 90, "gelu": 60, "elementwise": 200, "modes": 3, "threads": 1, "fork": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The number of checks and the failures of each group."""
    result = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", PROGRAM],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("group", MIN_CHECKS)
def test_kernels_are_right(report: dict[str, Any], group: str) -> None:
    assert report[group]["failures"] == {}
    assert report[group]["n_checks"] >= MIN_CHECKS[group]
