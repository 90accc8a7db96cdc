"""Step 11: generation, compared with a model whose next token is a sum, and with a distribution."""

import torch
import torch.nn.functional as F
from gpt import GPT, generate
from torch import nn

SIZES = dict(vocab_size=50, context_length=12, emb_dim=24, n_heads=3, n_layers=2)
PROMPT = torch.tensor([[1, 2, 3], [7, 8, 9]])


class Sums(nn.Module):
    """A model of 50 tokens and a context of 12: its likeliest next token is the sum of all that it sees, modulo 50."""

    def __init__(self):
        super().__init__()
        self.wpe = nn.Embedding(12, 1)

    def forward(self, ids):
        """Return logits: ids [B, T] -> [B, T, 50]."""
        return F.one_hot(ids.cumsum(dim=1) % 50, 50).float()


def random_model():
    """Return a model whose next tokens differ in probability."""
    model = GPT(**SIZES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_the_likeliest_token_is_appended_also_beyond_the_context():
    ids = generate(Sums(), PROMPT, 20)
    assert ids.shape == (2, 23) and torch.equal(ids[:, :3], PROMPT)
    for end in range(3, 23):
        assert torch.equal(ids[:, end], ids[:, max(0, end - 12) : end].sum(dim=1) % 50)


def test_top_1_is_the_likeliest():
    model = random_model()
    assert torch.equal(generate(model, PROMPT, 9, temperature=3.0, top_k=1), generate(model, PROMPT, 9))


def test_draws_follow_the_distribution():
    model, n = random_model(), 4000
    logits = model(PROMPT[:1])[0, -1].detach()
    drawn = generate(model, PROMPT[:1].expand(n, -1), 1, temperature=2.0)[:, -1]
    frequencies = drawn.bincount(minlength=50) / n
    torch.testing.assert_close(frequencies, (logits / 2).softmax(0), atol=0.03, rtol=0)
    of_three = generate(model, PROMPT[:1].expand(n, -1), 1, temperature=2.0, top_k=3)[:, -1].bincount(minlength=50) / n
    values, tokens = logits.topk(3)
    torch.testing.assert_close(of_three[tokens], (values / 2).softmax(0), atol=0.03, rtol=0)
