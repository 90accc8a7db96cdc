from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt2core.errors import UserError
from gpt2core.learn import LearnedPositionalEncoding, PositionalEncoding
from tests.learn.same import assert_same


def test_waves_are_the_papers_formula() -> None:
    C = 10
    encoding = PositionalEncoding(C, dropout=0.0, max_len=50)(torch.zeros(1, 50, C, dtype=torch.float64))[0]
    for t in (0, 1, 7, 49):
        for i in range(C // 2):
            angle = t / 10_000 ** (2 * i / C)
            assert encoding[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert encoding[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_a_shift_in_position_is_one_rotation_wherever_it_starts() -> None:
    """The paper's reason for waves: PE[t + k] is a linear function of PE[t] that depends on k alone."""
    encoding = PositionalEncoding(8, dropout=0.0, max_len=100)(torch.zeros(1, 100, 8, dtype=torch.float64))[0]
    pairs = torch.view_as_complex(encoding.view(100, 4, 2).flip(-1).contiguous())  # cos + i sin
    torch.testing.assert_close(pairs[13:] / pairs[:-13], (pairs[13] / pairs[0]).expand(87, 4))


def test_both_add_to_their_input_and_the_learned_one_learns() -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    fixed = PositionalEncoding(6, dropout=0.0, max_len=9)
    torch.testing.assert_close(fixed(x) - x, fixed(torch.zeros_like(x)))
    assert list(fixed.parameters()) == [] and not fixed.state_dict()
    learned = LearnedPositionalEncoding(6, 9).double()
    assert_same(learned, lambda x: x + F.embedding(torch.arange(5), learned.weight), [x], [(learned.weight,) * 2])


@pytest.mark.parametrize(
    ("encoding", "x"),
    [
        (PositionalEncoding(6, max_len=9), torch.zeros(1, 10, 6)),
        (PositionalEncoding(6, max_len=9, batch_first=False), torch.zeros(10, 1, 6)),
        (LearnedPositionalEncoding(6, 9), torch.zeros(1, 10, 6)),
    ],
    ids=["batch first", "tokens first", "learned"],
)
def test_too_long_a_text_is_refused(encoding: nn.Module, x: torch.Tensor) -> None:
    with pytest.raises(UserError, match="10 tokens are more than the 9 positions"):
        encoding(x)


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(UserError, match="d_model: 7 must be even"):
        PositionalEncoding(7)


def tutorial(d_model: int, max_len: int) -> torch.Tensor:
    """The buffer of PyTorch's tutorial "Language Modeling with nn.Transformer", [max_len, 1, d_model], in float32."""
    position = torch.arange(max_len).unsqueeze(1)
    div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
    pe = torch.zeros(max_len, 1, d_model)
    pe[:, 0, 0::2] = torch.sin(position * div_term)
    pe[:, 0, 1::2] = torch.cos(position * div_term)
    return pe


def test_the_published_call_gives_pytorchs_numbers_in_both_layouts() -> None:
    published = PositionalEncoding(d_model=512, max_len=5000)
    assert published.dropout.p == 0.1 and len(published.encoding) == 5000
    tokens_first = PositionalEncoding(512, 0.1, 5000, batch_first=False).eval()
    x = torch.randn(5000, 2, 512)  # [T, B, C]
    expected = x + tutorial(512, 5000)
    # float32 angles of up to 5,000 radians are off by up to 3e-4
    torch.testing.assert_close(tokens_first(x), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(tokens_first(x[:64]), expected[:64], atol=1e-5, rtol=0)
    torch.testing.assert_close(published.eval()(x.transpose(0, 1)), tokens_first(x).transpose(0, 1), atol=0, rtol=0)


def test_dropout_acts_while_training() -> None:
    encoding = PositionalEncoding(d_model=512, max_len=50)
    x = torch.ones(4, 50, 512)
    result = encoding(x)
    dropped = result == 0
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=0.01)  # of 102,400 values
    torch.testing.assert_close(result[~dropped], (encoding.eval()(x) / 0.9)[~dropped])


def test_a_length_in_the_place_of_dropout_is_refused() -> None:
    with pytest.raises(
        UserError, match="dropout: 1024 must be from 0 up to 1; the maximum number of tokens is max_len"
    ):
        PositionalEncoding(8, 1024)
