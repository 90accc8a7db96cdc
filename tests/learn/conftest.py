"""What the tests of the teaching forms share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools" / "docs"))  # its scripts import each other


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors here are tiny: a second thread costs more than it brings."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
