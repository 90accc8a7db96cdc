"""Each test draws the same random numbers, with one thread: more would slow down models of this size."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)
    torch.set_num_threads(1)
