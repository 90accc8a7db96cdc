"""Step 9: the whole model, compared with the pipeline's."""

import math

import torch
from gpt import GPT, cross_entropy

import gpt2core

SIZES = dict(vocab_size=300, context_length=16, emb_dim=24, n_heads=3, n_layers=2)
IDS = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))


def test_logits_and_gradients_are_the_pipelines():
    config = gpt2core.GPTConfig(vocab_size=300, n_positions=16, n_embd=24, n_head=3, n_layer=2)
    ours, theirs = GPT(**SIZES).double(), gpt2core.GPT(config).double().eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {f"transformer.{name}": tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state | {"lm_head.weight": ours.wte.weight})
    for T in (1, 9, 16):
        torch.testing.assert_close(ours(IDS[:, :T]), theirs(IDS[:, :T]), atol=1e-8, rtol=0)
    for model in (ours, theirs):
        model(IDS).logsumexp(-1).sum().backward()
    torch.testing.assert_close(ours.wte.weight.grad, theirs.transformer.wte.weight.grad, atol=1e-7, rtol=0)


def test_the_number_of_parameters_is_that_of_a_tied_output_layer():
    C, V, T, L = 24, 300, 16, 2
    expected = V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C
    assert sum(parameter.numel() for parameter in GPT(**SIZES).parameters()) == expected


def test_an_untrained_model_knows_nothing():
    loss = cross_entropy(GPT(**SIZES)(IDS).flatten(0, 1), IDS.flatten().roll(-1))
    assert abs(loss.item() - math.log(300)) < 0.1
