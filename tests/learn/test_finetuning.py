from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gpt2core
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.learn import (
    GPTModel,
    LinearWithLoRA,
    add_lora,
    classify_review,
    instruction_batch,
    instruction_example,
    last_token_logits,
    merge_lora,
)
from gpt2core.model import GPTClassifier, GPTConfig
from gpt2core.sources.synthetic import generate_instructions, generate_messages, generate_tales
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training.batches import IGNORE, next_token_batch
from gpt2core.training.instruct import make_example
from tests.learn.same import assert_same, random_weights
from tests.learn.test_gpt import CFG, IDS


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(generate_tales(0, 20), 400)


def test_the_answer_about_a_message_is_the_pipelines_classifiers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = GPTClassifier(GPTConfig(vocab_size=400, n_positions=64, n_embd=24, n_head=3, n_layer=2), ("ham", "spam"))
    for matrix in (parameter for parameter in model.parameters() if parameter.dim() == 2):
        nn.init.normal_(matrix, std=0.4)  # biases stay 0, or they decide for every text
    save_model(tmp_path / "c", model, tokenizer)
    theirs, _ = gpt2core.load(tmp_path / "c", dtype=torch.float64)
    ours = GPTModel.from_directory(tmp_path / "c", dtype=torch.float64)
    answers = set()
    for number, (_, message) in enumerate(generate_messages(0)[:12]):
        text = message[: 5 + 3 * number]  # whole ones nearly all end in a full stop, the token that is read
        ids = tokenizer.encode(text)[:64]
        expected = theirs(torch.tensor([ids]), torch.tensor([len(ids)])).argmax().item()
        pad = tokenizer.eot_id
        for max_length in (None, 64):  # padding up to the context cannot change the answer
            answer = classify_review(text, ours, tokenizer, "cpu", max_length, pad_token_id=pad)
            assert answer == ("not spam", "spam")[expected]
        answers.add(answer)
    assert answers == {"spam", "not spam"}
    assert classify_review("", ours, tokenizer, "cpu", pad_token_id=pad) in answers
    long = generate_tales(3, 1)[0]
    assert classify_review(long, ours, tokenizer, "cpu", 8) == classify_review(
        tokenizer.decode(tokenizer.encode(long)[:8]), ours, tokenizer, "cpu"
    )


def test_each_row_is_read_at_its_own_last_token() -> None:
    model = random_weights(GPTModel(CFG), std=0.3)
    lengths = torch.tensor([5, 16])
    logits = last_token_logits(model, IDS, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(logits[row], model(IDS[row : row + 1, :length])[0, -1], atol=1e-10, rtol=0)


def test_instructions_become_the_pipelines_batches(tokenizer: Tokenizer) -> None:
    entries = generate_instructions(0)[:6]
    ours = [instruction_example(entry, tokenizer, tokenizer.eot_id) for entry in entries]
    theirs = [make_example(entry, tokenizer, 10_000, mask_prompt=True) for entry in entries]
    assert ours == [tuple(example) for example in theirs]
    inputs, targets = instruction_batch(ours, tokenizer.eot_id)
    batch = next_token_batch(theirs, tokenizer.eot_id)
    ids, target_positions = batch.inputs
    assert torch.equal(inputs, ids)
    assert torch.equal((targets.flatten() != IGNORE).nonzero()[:, 0], target_positions)
    assert torch.equal(targets.flatten()[target_positions], batch.targets)


def test_an_adapter_is_the_sum_of_two_matrices_forward_and_backward() -> None:
    ours = random_weights(LinearWithLoRA(nn.Linear(6, 4), rank=2, alpha=3))
    A, B = ours.lora.A, ours.lora.B
    x = torch.randn(5, 6, dtype=torch.float64)

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, ours.linear.weight + 1.5 * B @ A, ours.linear.bias)

    assert_same(ours, theirs, [x], [(A, A), (B, B)])


def test_lora_begins_as_the_model_trains_few_weights_and_merges_into_it() -> None:
    model = random_weights(GPTModel(CFG), std=0.2)
    names = set(model.state_dict())
    before = model(IDS)
    add_lora(model, rank=2, alpha=4)
    torch.testing.assert_close(model(IDS), before, atol=0, rtol=0)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 6 * CFG["n_layers"] and all(".lora." in name for name in learning)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
        optimizer.step()
    for name, p in model.named_parameters():
        assert name in learning or torch.equal(p, frozen[name])
    tuned = model(IDS)
    assert (tuned - before).abs().max() > 1e-3
    merge_lora(model)
    assert set(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(IDS), tuned, atol=1e-10, rtol=0)
