"""Step 10: training, compared with PyTorch's loss and optimizer."""

import torch
import torch.nn.functional as F
from gpt import GPT, train, train_step

SIZES = dict(vocab_size=50, context_length=12, emb_dim=24, n_heads=3, n_layers=2)


def test_steps_are_pytorchs():
    ours, theirs = GPT(**SIZES).double(), GPT(**SIZES).double()
    theirs.load_state_dict(ours.state_dict())
    a, b = (torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (ours, theirs))
    for _ in range(3):
        ids = torch.randint(50, (4, 13))
        inputs, targets = ids[:, :-1], ids[:, 1:]
        loss = F.cross_entropy(theirs(inputs).flatten(0, 1), targets.flatten())
        b.zero_grad()
        loss.backward()
        b.step()
        assert abs(train_step(ours, a, inputs, targets) - loss.item()) < 1e-9
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-8, rtol=0)


def test_a_model_learns_a_text_by_heart():
    torch.manual_seed(0)
    ids = torch.randperm(50).tolist() * 4
    losses = train(GPT(**SIZES), ids, n_steps=100, lr=0.01)
    assert len(losses) == 100 and losses[0] > 3.5 and losses[-1] < 0.5
