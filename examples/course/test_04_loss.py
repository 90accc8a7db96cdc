"""Step 4: softmax and cross-entropy, compared with PyTorch's: values and gradients."""

import math

import torch
import torch.nn.functional as F
from gpt import cross_entropy, softmax


def test_softmax_is_pytorchs_along_the_last_dimension():
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(softmax(x), x.softmax(dim=-1))


def test_softmax_does_not_overflow():
    x = torch.tensor([[1000.0, 999.0, -1000.0]])
    torch.testing.assert_close(softmax(x), x.softmax(dim=-1))


def test_cross_entropy_and_its_gradient_are_pytorchs():
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (7,))
    ours, theirs = cross_entropy(logits, targets), F.cross_entropy(logits, targets)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_without_knowledge_the_loss_is_the_logarithm_of_the_choices():
    assert math.isclose(cross_entropy(torch.zeros(3, 50), torch.tensor([0, 7, 49])).item(), math.log(50), rel_tol=1e-5)
