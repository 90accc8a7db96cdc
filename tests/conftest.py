"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of real public inputs: GPT2CORE_MIRROR."""
    folder = Path(os.environ.get("GPT2CORE_MIRROR") or ROOT.parent / "shared" / "mirror")
    if not folder.is_dir():
        pytest.skip("no mirror of the real inputs: set GPT2CORE_MIRROR=path/to/mirror")
    return folder


@pytest.fixture(autouse=True)
def _tracking_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests of tracking track."""
    monkeypatch.setenv("GPT2CORE_TRACKING", "off")
