"""A circuit that copies from its first weights on."""

from __future__ import annotations

import pytest
import torch

from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTConfig
from gpt2core.model.induction import write_induction_circuit


def share_copied(model: GPT, ids: torch.Tensor, period: int) -> float:
    """Of the tokens that repeat those `period` before them, how many the model expects."""
    with torch.inference_mode():
        guess = model(ids)[:, period:-1].argmax(-1)
    return (guess == ids[:, period + 1 :]).float().mean().item()


@pytest.mark.parametrize(("n_embd", "n_head", "n_layer"), [(128, 4, 4), (192, 4, 2), (256, 8, 3)])
@pytest.mark.parametrize("period", [7, 40, 100])
def test_what_repeats_is_expected_and_what_is_new_is_not(n_embd: int, n_head: int, n_layer: int, period: int) -> None:
    torch.manual_seed(0)
    config = GPTConfig(2000, n_positions=256, n_embd=n_embd, n_layer=n_layer, n_head=n_head)
    model = GPT(config).eval()
    ids = torch.randint(2000, (4, period)).repeat(1, 2)
    assert share_copied(model, ids, period) < 0.05  # GPT-2's first weights copy nothing
    write_induction_circuit(model)
    assert share_copied(model, ids, period) > 0.7
    fresh = torch.randint(2000, (4, 2 * period))
    assert share_copied(model, fresh, period) < 0.05


def test_the_circuit_can_be_learned_from_like_any_weights() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(300, n_positions=64, n_embd=64, n_layer=2, n_head=4))
    write_induction_circuit(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    ids = torch.randint(300, (2, 64))
    model.loss(ids, ids.roll(-1, 1), reduction="sum").backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    "sizes",
    [dict(n_layer=1), dict(n_head=2), dict(n_embd=60), dict(tie_word_embeddings=False)],
)
def test_a_model_without_room_for_it_is_refused(sizes: dict[str, int]) -> None:
    config = GPTConfig(300, **{**dict(n_positions=64, n_embd=64, n_layer=2, n_head=4), **sizes})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="an induction circuit needs 2 blocks, 4 heads of even size and a tied head"):
        write_induction_circuit(GPT(config))
