"""The attention that `torch.compile` gets on a CPU, against the formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gpt2core.model import attention
from gpt2core.model.attention import attention_written_out, compiled_attention, fused_attention


@pytest.mark.parametrize("T", [2, 7, 64])
def test_it_is_the_formula_with_its_gradients(T: int) -> None:
    results = []
    for function in (compiled_attention, attention_written_out):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 3, T, 8, requires_grad=True) for _ in range(3))
        y = function(q, k, v)
        y.square().sum().backward()
        results.append([y, q.grad, k.grad, v.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_error_of_bfloat16_is_nearly_that_of_pytorchs_kernel() -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, 64, 8) for _ in range(3)]
    rounded = [tensor.bfloat16() for tensor in exact]
    truth = attention_written_out(*(tensor.float() for tensor in rounded))
    kernel = F.scaled_dot_product_attention(*rounded, is_causal=True)
    ours, theirs = ((found.float() - truth).square().mean().sqrt() for found in (compiled_attention(*rounded), kernel))
    assert ours < 2 * theirs


@pytest.mark.parametrize(
    ("dtype", "T", "is_compiling", "dropout", "is_used"),
    [
        (torch.bfloat16, 512, True, 0.0, True),
        (torch.bfloat16, 513, True, 0.0, False),  # would hold large scores
        (torch.bfloat16, 512, True, 0.1, False),
        (torch.bfloat16, 1, True, 0.0, False),
        (torch.float32, 512, True, 0.0, False),  # the kernel is faster
        (torch.bfloat16, 512, False, 0.0, False),
    ],
)
def test_where_it_is_used(
    dtype: torch.dtype, T: int, is_compiling: bool, dropout: float, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    monkeypatch.setattr(attention, "compiled_attention", lambda q, k, v: used.append(q.shape) or q)
    q = torch.randn(1, 1, T, 4).to(dtype)
    fused_attention(q, q, q, dropout=dropout)
    assert bool(used) == is_used


@pytest.mark.slow
def test_compiled_it_is_the_kernel() -> None:
    torch.manual_seed(0)
    results = []
    x = torch.randn(3, 2, 3, 33, 8).bfloat16()
    for function in (torch.compile(fused_attention), fused_attention):
        q, k, v = (tensor.clone().requires_grad_() for tensor in x)
        y = function(q, k, v)
        y.float().square().sum().backward()
        results.append([y, q.grad, k.grad, v.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=3e-2)
