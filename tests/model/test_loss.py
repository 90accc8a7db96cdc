"""The loss in chunks against PyTorch's `linear` and `cross_entropy`."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from gpt2core.model import GPT, GPTConfig, loss
from gpt2core.model.loss import linear_cross_entropy, padded

N, C, V = 37, 12, 29


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, C, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, C, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("rows", [1, 5, 36, 37, 1000])
@pytest.mark.parametrize("multiple", [1, 8])
def test_value_and_gradients_are_pytorchs(rows: int, multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", rows * V + 3)
    ours, theirs = inputs(torch.float64), inputs(torch.float64)
    value = loss._LinearCrossEntropy.apply(*ours, torch.float64, multiple, False) / 7
    expected = F.cross_entropy(F.linear(*theirs[:2]), theirs[2], reduction="sum") / 7
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    value.backward()
    expected.backward()
    for ours_, theirs_ in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(ours_.grad, theirs_.grad, rtol=1e-10, atol=1e-12)


def test_gradients_by_finite_differences() -> None:
    hidden, weight, targets = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))


def test_autocast_is_pytorchs_autocast() -> None:
    """Products in bfloat16, softmax and sum in float32: as near to the truth as PyTorch's own."""
    results = []
    for ours in (True, False):
        hidden, weight, targets = inputs(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            if ours:
                value = linear_cross_entropy(hidden, weight, targets)
            else:
                value = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
        value.backward()
        results.append((value, hidden.grad, weight.grad))
    assert {tensor.dtype for tensor in results[0]} == {torch.float32}
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("rows", [8, 16, 64])
def test_the_gradient_of_the_head_in_parts(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient() -> torch.Tensor:
        hidden, weight, targets = inputs(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            linear_cross_entropy(hidden, weight, targets).backward()
        return weight.grad

    whole = gradient()
    monkeypatch.setattr(loss, "CPU_GRADIENT_ROWS", rows)
    torch.testing.assert_close(gradient(), whole, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("n_added", [0, 3])
def test_the_fused_form_is_the_same(n_added: int) -> None:
    """Not compiled here: `tests/training/test_pretrain.py` trains a compiled model."""
    logits = torch.randn(N, V + n_added).mul_(5).to(torch.bfloat16)
    target = torch.randint(V, (N, 1))
    ours, theirs = logits.clone(), logits.clone()
    total = loss._cross_entropy_fused_(ours, target, V)
    torch.testing.assert_close(total, loss.cross_entropy_(theirs, target, V, wants_gradient=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
    unchanged = logits.clone()
    assert loss.cross_entropy_(unchanged, target, V, wants_gradient=False).item() == pytest.approx(total.item())
    assert torch.equal(unchanged, logits)


@pytest.mark.slow
def test_a_compiled_loss_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 20 * V)  # a second, shorter chunk

    def step(is_compiled: bool) -> list[torch.Tensor]:
        hidden, weight, targets = inputs(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            value = linear_cross_entropy(hidden, weight, targets, is_compiled=is_compiled)
        value.backward()
        return [value.detach(), hidden.grad, weight.grad]

    for ours, theirs in zip(step(True), step(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


def test_frozen_parts_get_no_gradient_and_nothing_is_kept_without() -> None:
    hidden, weight, targets = inputs(torch.float32)
    linear_cross_entropy(hidden, weight.detach(), targets).backward()
    assert hidden.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad


def test_added_rows_of_the_vocabulary_are_zeros() -> None:
    weight = torch.randn(50, 3)
    assert padded(weight, torch.float32, 1) is weight
    wide = padded(weight, torch.bfloat16, 64)
    assert wide.shape == (64, 3)
    assert torch.equal(wide[:50], weight.to(torch.bfloat16))
    assert not wide[50:].any()


def test_logits_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that the loss makes is larger than a chunk or than its gradients."""
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 4 * V)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        linear_cross_entropy(*inputs(torch.float32)).backward()
    assert largest <= max(4 * V, N * C, V * C) < N * V


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_loss_and_gradients_are_those_of_its_logits(tied: bool) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(61, n_positions=16, n_embd=12, n_layer=2, n_head=2, tie_word_embeddings=tied)).double()
    ids, targets = torch.randint(61, (3, 16)), torch.randint(61, (3, 16))
    target_positions = torch.tensor([1, 5, 6, 30, 47])
    for places in (None, target_positions):
        wanted = targets if places is None else targets.flatten()[places]
        model.zero_grad()
        model.loss(ids, wanted, places, reduction="sum").backward()
        ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        logits = model(ids).flatten(0, 1)
        logits = logits if places is None else logits[places]
        expected = F.cross_entropy(logits, wanted.flatten(), reduction="sum")
        expected.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-12)
        assert model.loss(ids, wanted, places, reduction="sum").item() == pytest.approx(expected.item(), rel=1e-12)


def test_activation_checkpointing_changes_no_gradient_and_keeps_less() -> None:
    def step(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        model = GPT(GPTConfig(61, n_positions=64, n_embd=32, n_layer=4, n_head=2, resid_pdrop=0.1, embd_pdrop=0.1))
        model.transformer.activation_checkpointing = checkpointing
        ids, kept = torch.randint(61, (3, 64)), 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total = model.loss(ids, ids, reduction="sum")
        total.backward()
        return [parameter.grad for parameter in model.parameters()], kept

    (plain, plain_kept), (again, again_kept) = step(False), step(True)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    assert again_kept < plain_kept / 2


def test_the_first_loss_of_gpt2_is_the_logarithm_of_its_vocabulary() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(2000, n_positions=64, n_embd=64, n_layer=2, n_head=2))
    ids = torch.randint(2000, (4, 64))
    assert model.loss(ids, ids.roll(-1, 1), reduction="sum").item() / ids.numel() == pytest.approx(
        math.log(2000), rel=0.03
    )
