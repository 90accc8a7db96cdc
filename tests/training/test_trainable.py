"""Which weights a training step changes."""

from __future__ import annotations

import pytest
import torch

from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.training.optimizers import adamw
from gpt2core.training.trainable import freeze_except

CONFIG = GPTConfig(50, n_positions=16, n_embd=16, n_layer=3, n_head=2)
BLOCKS = {"head": set(), "last_block": {2}, "last_two_blocks": {1, 2}, "blocks": {0, 1, 2}, "all": {0, 1, 2}}


def changed(model: torch.nn.Module, loss: torch.Tensor) -> set[str]:
    """The names of the parameters that a step changes."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = adamw(model.parameters(), lr=0.1, weight_decay=0.1, beta2=0.95)
    loss.backward()
    optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def expected(names: set[str], trainable: str, embeddings: tuple[str, ...]) -> set[str]:
    def learns(name: str) -> bool:
        if name.startswith("transformer.h."):
            return int(name.split(".")[2]) in BLOCKS[trainable]
        return trainable == "all" or not name.startswith(embeddings)

    return {name for name in names if learns(name)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("trainable", ["last_two_blocks", "blocks", "all"])
def test_of_a_language_model(trainable: str, tied: bool) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**CONFIG.__dict__, "tie_word_embeddings": tied}))
    freeze_except(model, trainable)
    ids = torch.arange(50).repeat(2)[:96].view(6, 16)  # every token
    names = {name for name, _ in model.named_parameters()}
    found = changed(model, model.loss(ids, ids.roll(-1, 1), reduction="sum"))
    assert found == expected(names, trainable, ("transformer.wte", "transformer.wpe", "lm_head"))


@pytest.mark.parametrize("trainable", BLOCKS)
def test_of_a_classifier(trainable: str) -> None:
    torch.manual_seed(0)
    model = GPTClassifier(CONFIG, ("ham", "spam"))
    freeze_except(model, trainable)
    ids, lengths = torch.arange(50).repeat(2)[:96].view(6, 16), torch.full((6,), 16)
    names = {name for name, _ in model.named_parameters()}
    loss = torch.nn.functional.cross_entropy(model(ids, lengths), torch.tensor([0, 1, 0, 1, 1, 1]))
    assert changed(model, loss) == expected(names, trainable, ("transformer.wte", "transformer.wpe"))
