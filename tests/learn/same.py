"""Two modules held equal: the output, and the gradient of every weight and input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def random_weights(module: nn.Module, std: float = 0.5) -> nn.Module:
    """All weights random, in float64 and eval mode, so that no zero or one of a fresh module hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std)
    return module


def assert_same(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[tuple[Tensor, Tensor]] = (),
    tolerance: float = 1e-11,
) -> None:
    """Equal outputs, and equal gradients of a random weighting of them.

    Args:
        ours, theirs: take `inputs`.
        inputs: those in float64 must get equal gradients too.
        weights: pairs of our weight and a function's or module's of theirs; ours must be a leaf or a view of leaves
            whose gradient is asked for by `torch.autograd.grad`.
    """
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    asked = [x for x in inputs if x.is_floating_point()]
    a, b = ours(*inputs), theirs(*inputs)
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
    weighting = torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours_asked, theirs_asked = asked + [pair[0] for pair in weights], asked + [pair[1] for pair in weights]
    a_grads = torch.autograd.grad((a * weighting).sum(), ours_asked)
    b_grads = torch.autograd.grad((b * weighting).sum(), theirs_asked)
    for a_grad, b_grad in zip(a_grads, b_grads, strict=True):
        torch.testing.assert_close(a_grad, b_grad, atol=tolerance, rtol=0)
