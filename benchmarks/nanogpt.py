"""The peer: nanoGPT's model, optimizer and schedule, written from its published description (Karpathy 2022).

Where it is unlike this project's model: GELU in its exact form (erf) where GPT-2 has tanh, biases by option and off in
its recipes, a vocabulary padded to 50,304, windows at random offsets, AdamW fused on CUDA only.

Shapes: B batch, T tokens, C channels, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes and switches; the defaults are those of its 124M model."""

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = False


@dataclass(frozen=True)
class Recipe:
    """Optimizer and schedule; the defaults are those of its 124M model on OpenWebText."""

    learning_rate: float = 6e-4
    min_lr: float = 6e-5
    warmup_steps: int = 2000
    decay_steps: int = 600_000
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2)
        )  # [B, H, T, D]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # [B, H, T, D]
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C)))


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(ids.size(1), device=ids.device)))  # [B, T, C]
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class NanoGPT(nn.Module):
    """The model with its initial weights: normal(0, 0.02), smaller where a layer writes to the residual path."""

    def __init__(self, config: Config):
        super().__init__()
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                shrink = math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, mean=0.0, std=0.02 / shrink)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of ids and targets, both [B, T]."""
        logits = self.lm_head(self.transformer(ids))  # [B, T, V]
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))


def configure_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases and norms do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=parameters[0].is_cuda)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to `min_lr` at `decay_steps`. `step` counts from 0."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / (recipe.warmup_steps + 1)
    progress = min(1.0, (step - recipe.warmup_steps) / (recipe.decay_steps - recipe.warmup_steps))
    return recipe.min_lr + (recipe.learning_rate - recipe.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def random_windows(tokens: np.ndarray, n: int, context: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return a batch at random offsets, as nanoGPT draws them: ids and the next ids, both [n, context]."""
    starts = rng.integers(len(tokens) - context, size=n)
    ids = torch.from_numpy(np.stack([tokens[i : i + context + 1] for i in starts]).astype(np.int64))  # [n, T + 1]
    return ids[:, :-1], ids[:, 1:]


def train(
    model: nn.Module,
    recipe: Recipe,
    batch: Callable[[], tuple[Tensor, Tensor]],
    steps: int,
    on_step: Callable[[int, Tensor], None] = lambda step, loss: None,
) -> None:
    """Run its training loop in float32, one micro-batch per step; `on_step` gets the number of steps and the loss."""
    optimizer = configure_optimizer(model, recipe)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = model(*batch())
        loss.backward()
        if recipe.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(step + 1, loss.detach())
