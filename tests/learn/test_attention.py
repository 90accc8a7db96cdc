from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2core.errors import UserError
from gpt2core.learn import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
    simple_attention,
)
from tests.learn.same import assert_same, random_weights


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_without_weights_it_is_pytorchs_attention_of_a_text_to_itself(x: Tensor) -> None:
    assert_same(simple_attention, lambda x: F.scaled_dot_product_attention(x, x, x, scale=1.0), [x])
    assert_same(simple_attention, lambda x: F.scaled_dot_product_attention(x, x, x, scale=1.0), [x.detach()[0]])


def test_raw_weights_are_pytorchs_attention(x: Tensor) -> None:
    ours = random_weights(SelfAttention_v1(6, 4))
    weights = [ours.W_query, ours.W_key, ours.W_value]
    assert_same(
        ours,
        lambda x: F.scaled_dot_product_attention(*(x @ weight for weight in weights)),
        [x],
        [(weight, weight) for weight in weights],
    )


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_linear_layers_are_the_raw_weights_transposed(x: Tensor, qkv_bias: bool) -> None:
    ours = random_weights(SelfAttention_v2(6, 4, qkv_bias))
    linears = [ours.W_query, ours.W_key, ours.W_value]
    attention = F.scaled_dot_product_attention
    assert_same(ours, lambda x: attention(*(linear(x) for linear in linears)), [x], [(p, p) for p in ours.parameters()])
    if not qkv_bias:
        v1 = SelfAttention_v1(6, 4).double()
        for name in ("W_query", "W_key", "W_value"):
            getattr(v1, name).data = getattr(ours, name).weight.data.T
        torch.testing.assert_close(v1(x), ours(x))


@pytest.mark.parametrize("T", [1, 5, 7])
def test_the_causal_form_is_pytorchs(x: Tensor, T: int) -> None:
    ours = random_weights(CausalAttention(6, 4, context_length=7, dropout=0.5))
    linears = [ours.W_query, ours.W_key, ours.W_value]

    def theirs(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(linear(x) for linear in linears), is_causal=True)

    assert_same(ours, theirs, [x[:, :T].clone()], [(p, p) for p in ours.parameters()])


def test_dropout_takes_weights_away_and_makes_the_others_larger() -> None:
    torch.manual_seed(0)
    ours = CausalAttention(3, 3, 64, dropout=0.5).train()
    nn.init.zeros_(ours.W_query.weight)  # all weights alike: 1 / (t + 1)
    ours.W_value.weight.data = torch.eye(3)
    drawn = torch.stack([ours(torch.ones(1, 64, 3))[0, -1, 0] for _ in range(400)])
    assert drawn.std() > 0.05 and drawn.mean().item() == pytest.approx(1, abs=0.03)


def test_stacked_heads_are_one_multi_head_attention(x: Tensor) -> None:
    """The same weights in the stacked form and in the form by view and transpose."""
    H, D = 3, 2
    stacked = random_weights(MultiHeadAttentionWrapper(6, D, 7, 0.0, num_heads=H))
    general = random_weights(MultiHeadAttention(6, H))
    general.out_proj.weight.data, general.out_proj.bias.data = torch.eye(6).double(), torch.zeros(6).double()
    pairs = []
    for name in ("W_query", "W_key", "W_value"):
        linear = getattr(general, name)
        linear.weight.data = torch.cat([getattr(head, name).weight for head in stacked.heads]).detach()
        linear.bias.data.zero_()
        pairs.append((linear.weight, [getattr(head, name).weight for head in stacked.heads]))
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    assert_same(stacked, lambda x: general(x, x, x, mask), [x])
    weighting = torch.randn(2, 7, 6, dtype=torch.float64)
    (stacked(x) * weighting).sum().backward()
    (general(x, x, x, mask) * weighting).sum().backward()
    for whole, parts in pairs:
        torch.testing.assert_close(whole.grad, torch.cat([part.grad for part in parts]))


def pytorchs(ours: MultiHeadAttention, C: int, H: int, bias: bool) -> nn.MultiheadAttention:
    """nn.MultiheadAttention with the same weights."""
    theirs = nn.MultiheadAttention(C, H, bias=bias, batch_first=True).double()
    kinds = ("weight", "bias") if bias else ("weight",)
    for kind in kinds:
        parts = [getattr(linear, kind).detach() for linear in (ours.W_query, ours.W_key, ours.W_value)]
        getattr(theirs, f"in_proj_{kind}").data = torch.cat(parts)
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    return theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["self", "causal", "cross", "cross with padding"])
def test_the_general_form_is_pytorchs(kind: str, bias: bool) -> None:
    C, H, T, S = 12, 3, 5, 7 if kind.startswith("cross") else 5
    generator = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(2, n, C, generator=generator, dtype=torch.float64) for n in (T, S, S))
    ours = random_weights(MultiHeadAttention(C, H, bias=bias))
    theirs = pytorchs(ours, C, H, bias)
    mask = {
        "causal": torch.ones(T, S, dtype=torch.bool).tril(),
        "cross with padding": (torch.arange(S) < torch.tensor([[4], [7]]))[:, None].expand(2, T, S),
    }.get(kind)
    theirs_mask = None if mask is None else ~(mask.repeat_interleave(H, 0) if mask.dim() == 3 else mask)

    inputs = [query, key, value] if kind.startswith("cross") else [query]

    def our_form(q: Tensor, *kv: Tensor) -> Tensor:
        return ours(q, *(kv or (q, q)), mask)

    def pytorchs_form(q: Tensor, *kv: Tensor) -> Tensor:
        return theirs(q, *(kv or (q, q)), attn_mask=theirs_mask)[0]

    pair = our_form, pytorchs_form
    assert_same(*pair, inputs, [(ours.out_proj.weight, theirs.out_proj.weight)])
    for function in pair:
        function(*inputs).pow(2).sum().backward()
    grads = torch.cat([linear.weight.grad for linear in (ours.W_query, ours.W_key, ours.W_value)])
    torch.testing.assert_close(grads, theirs.in_proj_weight.grad, atol=1e-10, rtol=0)


def test_masks_of_ones_and_zeros_with_or_without_a_head_dimension_are_the_same() -> None:
    ours = random_weights(MultiHeadAttention(8, 2))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.ones(5, 5).tril()
    expected = ours(x, x, x, mask.bool())
    for same in (mask, mask.expand(2, 5, 5), mask.expand(2, 1, 5, 5), mask.expand(2, 2, 5, 5).int()):
        torch.testing.assert_close(ours(x, x, x, same), expected)
    assert not ours.weights.triu(1).any()
    torch.testing.assert_close(ours.weights.sum(-1), torch.ones(2, 2, 5).double())


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="3 heads do not divide the width d_model 8"):
        MultiHeadAttention(8, 3)
