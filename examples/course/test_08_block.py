"""Step 8: layer norm, GELU, feed-forward, and the block, compared with PyTorch's and with the pipeline's block."""

import torch
import torch.nn.functional as F
from gpt import Block, FeedForward, LayerNorm, gelu

from gpt2core.model import GPTConfig
from gpt2core.model.gpt import Block as PipelineBlock


def randomize(module):
    """Draw all parameters, so that no 0 or 1 hides a mistake."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def test_layer_norm_is_pytorchs():
    ours, x = randomize(LayerNorm(12)), torch.randn(2, 3, 12) * 5 + 1
    torch.testing.assert_close(ours(x), F.layer_norm(x, (12,), ours.weight, ours.bias, eps=1e-5))
    torch.testing.assert_close(LayerNorm(12)(x), F.layer_norm(x, (12,)))
    torch.testing.assert_close(LayerNorm(12)(torch.ones(1, 12)), torch.zeros(1, 12))


def test_gelu_is_the_tanh_form():
    x = torch.linspace(-6, 6, 501, dtype=torch.float64)
    torch.testing.assert_close(gelu(x), F.gelu(x, approximate="tanh"))


def test_feed_forward_treats_each_token_alone():
    ours, x = randomize(FeedForward(12)), torch.randn(2, 5, 12)
    expected = F.linear(F.gelu(ours.c_fc(x), approximate="tanh"), ours.c_proj.weight, ours.c_proj.bias)
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours(x[:, 2:3]), ours(x)[:, 2:3])


def test_the_block_is_the_pipelines():
    ours = randomize(Block(12, 3)).double()
    theirs = PipelineBlock(GPTConfig(vocab_size=300, n_positions=8, n_embd=12, n_head=3, n_layer=1)).double().eval()
    theirs.load_state_dict(ours.state_dict())  # your parts have GPT-2's names
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-9, rtol=0)
