"""Step 7: several heads, compared with PyTorch's `nn.MultiheadAttention`."""

import pytest
import torch
from gpt import MultiHeadAttention
from torch import nn


@pytest.mark.parametrize("n_heads", [1, 2, 6])
def test_heads_are_pytorchs(n_heads):
    ours = MultiHeadAttention(12, n_heads)
    theirs = nn.MultiheadAttention(12, n_heads, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = ours.c_attn.weight, ours.c_attn.bias
    theirs.out_proj.weight, theirs.out_proj.bias = ours.c_proj.weight, ours.c_proj.bias
    for T in (1, 5):
        x = torch.randn(2, T, 12)
        expected, _ = theirs(x, x, x, attn_mask=torch.ones(T, T, dtype=torch.bool).triu(1))
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)


def test_the_number_of_heads_changes_no_shape():
    sizes = {sum(parameter.numel() for parameter in MultiHeadAttention(12, n).parameters()) for n in (1, 2, 6)}
    assert sizes == {4 * 12 * 12 + 4 * 12}
