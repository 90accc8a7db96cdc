"""Step 5: gradient descent, compared with PyTorch's optimizer and with the exact solution of a line."""

import numpy as np
import torch
from gpt import descend, minimize


def test_a_step_is_pytorchs():
    ours = torch.randn(4, 3, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([theirs], lr=0.1)
    for _ in range(3):
        ours.pow(4).sum().backward()
        descend([ours], 0.1)
        optimizer.zero_grad()
        theirs.pow(4).sum().backward()
        optimizer.step()
        torch.testing.assert_close(ours.detach(), theirs.detach())
    assert ours.grad is None


def test_a_line_through_points_is_the_exact_one():
    x = torch.linspace(-1, 1, 20)
    y = 3 * x - 2 + 0.1 * torch.sin(20 * x)
    slope, intercept = (torch.zeros((), requires_grad=True) for _ in range(2))
    losses = minimize(lambda: (slope * x + intercept - y).pow(2).mean(), [slope, intercept], lr=0.5, n_steps=200)
    assert len(losses) == 200 and losses[0] > 1 > losses[-1]
    expected = np.polyfit(x.numpy(), y.numpy(), 1)
    torch.testing.assert_close(
        torch.stack([slope, intercept]).detach().double(), torch.tensor(expected).double(), atol=1e-4, rtol=0
    )
