"""A small GPT trained from random weights in seconds, for the chapters about generation and fine-tuning."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import nn

from gpt2core.learn.dataset import Encoder, create_dataloader_v1
from gpt2core.learn.gpt import GPTModel
from gpt2core.learn.optim import AdamW, train_step, warmup_cosine


def small_config(vocab_size: int, **changes: Any) -> dict[str, Any]:
    """Return a GPT of about 0.14 million parameters, as a dict for `GPTModel`."""
    return dict(
        vocab_size=vocab_size, context_length=64, emb_dim=64, n_heads=4, n_layers=2, drop_rate=0.0, qkv_bias=True,
        tie_weights=True,
    ) | changes  # fmt: skip


def initialize(model: GPTModel) -> None:
    """Set GPT-2's initial weights: normal(0, 0.02), and biases 0.

    Layers that write to the residual path of L blocks get weights smaller by √(2L).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            writes_to_stream = name.endswith(("att.out_proj", "ff.layers.2"))
            std = 0.02 / math.sqrt(2 * model.cfg["n_layers"]) if writes_to_stream else 0.02
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def train_small(
    text: str, tokenizer: Encoder, cfg: dict[str, Any], steps: int, peak_lr: float = 3e-3, seed: int = 0
) -> tuple[GPTModel, list[float]]:
    """Train a new model on a text, 16 windows per step; return it in eval mode, and the loss of each step."""
    torch.manual_seed(seed)
    model = GPTModel(cfg)
    initialize(model)
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    T = cfg["context_length"]
    loader = create_dataloader_v1(text, batch_size=16, max_length=T, stride=T, tokenizer=tokenizer)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))  # the loader again and again
    losses = []
    for step, (inputs, targets) in enumerate(itertools.islice(epochs, steps)):
        optimizer.lr = warmup_cosine(step, peak_lr, warmup_steps=steps // 10, max_steps=steps, min_lr=peak_lr / 10)
        losses.append(train_step(model, optimizer, inputs, targets))
    return model.eval(), losses
