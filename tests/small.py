"""What small random models are made of, for tests that want model directories and no meaning."""

from __future__ import annotations

import torch

from gpt2core.model import GPTConfig
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe

TEXT = "The keeper of the harbour took the lamp to the tower, and the lamp was lit. " * 4


def config_and_tokenizer(
    n_positions: int = 320, n_embd: int = 16, initializer_range: float = 0.3
) -> tuple[GPTConfig, Tokenizer]:
    """Two blocks and a BPE of `TEXT`. Seeds what draws the weights of the models made next."""
    tokenizer = train_bpe([TEXT], 280)
    torch.manual_seed(0)
    sizes = dict(n_positions=n_positions, n_embd=n_embd, n_layer=2, n_head=2)
    return GPTConfig(tokenizer.vocab_size, initializer_range=initializer_range, **sizes), tokenizer
