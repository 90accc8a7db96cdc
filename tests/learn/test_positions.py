from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gpt2core.errors import UserError
from gpt2core.learn import LearnedPositionalEncoding, PositionalEncoding
from tests.learn.same import assert_same


def test_waves_are_the_papers_formula() -> None:
    C = 10
    encoding = PositionalEncoding(C, 50)(torch.zeros(1, 50, C, dtype=torch.float64))[0]
    for t in (0, 1, 7, 49):
        for i in range(C // 2):
            angle = t / 10_000 ** (2 * i / C)
            assert encoding[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert encoding[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_a_shift_in_position_is_one_rotation_wherever_it_starts() -> None:
    """The paper's reason for waves: PE[t + k] is a linear function of PE[t] that depends on k alone."""
    encoding = PositionalEncoding(8, 100)(torch.zeros(1, 100, 8, dtype=torch.float64))[0]
    pairs = torch.view_as_complex(encoding.view(100, 4, 2).flip(-1).contiguous())  # cos + i sin
    torch.testing.assert_close(pairs[13:] / pairs[:-13], (pairs[13] / pairs[0]).expand(87, 4))


def test_both_add_to_their_input_and_the_learned_one_learns() -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    fixed = PositionalEncoding(6, 9)
    torch.testing.assert_close(fixed(x) - x, fixed(torch.zeros_like(x)))
    assert list(fixed.parameters()) == [] and not fixed.state_dict()
    learned = LearnedPositionalEncoding(6, 9).double()
    assert_same(learned, lambda x: x + F.embedding(torch.arange(5), learned.weight), [x], [(learned.weight,) * 2])


@pytest.mark.parametrize("encoding", [PositionalEncoding, LearnedPositionalEncoding])
def test_too_long_a_text_is_refused(encoding: type) -> None:
    with pytest.raises(UserError, match="10 tokens are more than the 9 positions"):
        encoding(6, 9)(torch.zeros(1, 10, 6))


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(UserError, match="d_model: 7 must be even"):
        PositionalEncoding(7)
