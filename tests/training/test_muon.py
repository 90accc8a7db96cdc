"""Muon against torch's, which rounds to bfloat16, and against the singular value decomposition."""

from __future__ import annotations

import copy

import pytest
import torch

from gpt2core.training.muon import Muon, orthogonalize

SHAPES = [(24, 24), (72, 24), (96, 24), (24, 96), (24, 24), (72, 24)]


def matrices(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 64)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, ...]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(given, full_matrices=False)
    # The formula on the singular values alone.
    expected = s / given.flatten(1).norm(dim=1, keepdim=True)
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    found = orthogonalize(given)
    torch.testing.assert_close(found, u * expected[:, None] @ vt)
    large = s > 0.1 * s[:, :1]
    assert ((expected > 0.6) & (expected < 1.3))[large].all()


def test_the_updates_are_torchs_to_bfloat16s_precision() -> None:
    ours, theirs = matrices(1), matrices(1)
    settings = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(4):
        before = copy.deepcopy(theirs)
        for mine, other, grad in zip(ours, theirs, matrices(10 + step), strict=True):
            mine.data.copy_(other)
            mine.grad, other.grad = grad.detach().clone(), grad.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        for mine, other, old in zip(ours, theirs, before, strict=True):
            error = (mine - other).norm() / (other - old).norm()
            assert error < 0.03  # bfloat16 has 8 bits


def test_matrices_without_a_gradient_stay() -> None:
    params = matrices(2)
    before = copy.deepcopy(params)
    params[1].grad = torch.ones_like(params[1])
    Muon(params, lr=0.1).step()
    assert [torch.equal(new, old) for new, old in zip(params, before, strict=True)] == [
        True, False, True, True, True, True,
    ]  # fmt: skip


def test_working_on_fewer_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in (1 << 26, 24 * 24):
        monkeypatch.setattr("gpt2core.training.muon.CHUNK_ELEMENTS", chunk)
        params = matrices(3)
        for param in params:
            param.grad = param.detach().sin()
        Muon(params, lr=0.1).step()
        results.append(params)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
