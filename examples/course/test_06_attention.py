"""Step 6: causal attention, compared with PyTorch's: values and gradients."""

import torch
import torch.nn.functional as F
from gpt import causal_attention


def random_qkv(*shape):
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def test_values_and_gradients_are_pytorchs():
    for shape in ((5, 4), (2, 5, 4), (2, 3, 5, 4)):
        qkv = random_qkv(*shape)
        ours, theirs = causal_attention(*qkv), F.scaled_dot_product_attention(*qkv, is_causal=True)
        torch.testing.assert_close(ours, theirs)
        weighting = torch.randn_like(ours)
        for a, b in zip(*(torch.autograd.grad((y * weighting).sum(), qkv) for y in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, b)


def test_the_future_is_not_seen():
    q, k, v = (part.detach() for part in random_qkv(1, 6, 4))
    before = causal_attention(q, k, v)
    k[:, 4:] += 1
    v[:, 4:] += 1
    after = causal_attention(q, k, v)
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=0, rtol=0)
    assert not torch.equal(after[:, 4:], before[:, 4:])


def test_the_first_token_sees_itself_only():
    q, k, v = random_qkv(3, 7, 2)
    torch.testing.assert_close(causal_attention(q, k, v)[:, 0], v[:, 0])
