"""Step 3: windows with their targets, and the sum of token and position vectors."""

import torch
from gpt import embed, windows
from torch.nn.functional import embedding


def test_targets_are_the_next_ids():
    ids = list(range(100, 120))
    inputs, targets = windows(ids, length=4, stride=3)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs[:, 0].tolist() == [100, 103, 106, 109, 112, 115]
    assert torch.equal(targets, inputs + 1)


def test_every_window_that_fits_is_there():
    inputs, targets = windows([1, 2, 3, 4, 5], length=4, stride=1)
    assert inputs.tolist() == [[1, 2, 3, 4]] and targets.tolist() == [[2, 3, 4, 5]]


def test_an_embedding_is_pytorchs_plus_the_position():
    tokens, positions = torch.randn(10, 6), torch.randn(8, 6)
    ids = torch.tensor([[3, 1, 3], [9, 0, 2]])
    expected = embedding(ids, tokens) + embedding(torch.tensor([0, 1, 2]), positions)
    torch.testing.assert_close(embed(ids, tokens, positions), expected)
