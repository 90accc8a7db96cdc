"""GPT-2, in the paper's order: embeddings, blocks, final norm, tied output head (Radford et al. 2019, section 2.3).

Shapes: B batch, T tokens, C channels (n_embd), V vocabulary. Parameter names are transformers', so that a state dict
needs no renaming but for its prefix; `checkpoint/names.py` has the table.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2core.errors import UserError
from gpt2core.model.attention import CausalSelfAttention
from gpt2core.model.config import GPTConfig
from gpt2core.model.kv_cache import KVCache, LayerCache
from gpt2core.model.loss import linear_cross_entropy


class MLP(nn.Module):
    """Two linear layers, four times as wide inside, with GPT-2's GELU: the tanh form (Hendrycks and Gimpel 2016)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers to each position: [B, T, C] -> [B, T, C]."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):
    """Attention, then an MLP, each after a layer norm and with a residual connection (pre-norm)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: LayerCache | None = None, mask: Tensor | None = None) -> Tensor:
        """Add attention and MLP to the residual path: [B, T, C] -> [B, T, C]."""
        x = x + self.attn(self.ln_1(x), cache, mask)
        return x + self.mlp(self.ln_2(x))

    def forward_at(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return `forward` at one position per row, without the MLPs of the others: [B, T, C], [B] -> [B, C]."""
        here = torch.arange(x.size(0), device=x.device), positions
        x = x[here] + self.attn.forward_at(self.ln_1(x), positions)  # [B, C]
        return x + self.mlp(self.ln_2(x))


def next_positions(ids: Tensor, cache: KVCache | None, n_positions: int) -> Tensor:
    """Return the positions [T] of `ids` [B, T] after the cached ones. Raises UserError if the model has fewer."""
    start = cache.length if cache else 0
    end = start + ids.size(1)
    if end > n_positions:
        raise UserError(f"{end} tokens are more than this model's {n_positions} positions")
    return torch.arange(start, end, device=ids.device)


class Transformer(nn.Module):
    """Everything below the head: ids in, one hidden state per position out.

    With `activation_checkpointing`, the backward pass recomputes the activations of each block instead of keeping them:
    much less memory for a third more time (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
    """

    activation_checkpointing = False

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states after the final norm.

        Args:
            ids: [B, T] int64.
            cache: holds the tokens before these, and gets these too.
            positions: [B, T] where they are not simply the next ones (rows of unequal length).
            mask: [B, 1, T, S], true where a query may look; causal if absent.

        Returns:
            [B, T, C]

        Raises:
            UserError: the text is longer than the model has positions.
        """
        if positions is None:
            positions = next_positions(ids, cache, self.config.n_positions)  # [T]
        x = self.drop(self.wte(ids) + self.wpe(positions))  # [B, T, C]
        for i, block in enumerate(self.h):
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, None, mask, use_reentrant=False)
            else:
                x = block(x, cache.layers[i] if cache else None, mask)
        return self.ln_f(x)


class GPT(nn.Module):
    """The language model: logits for the token after each position.

    `n_tokens` is the number of tokens that its tokenizer has. The vocabulary may be padded beyond it; these ids are
    never generated. While `is_loss_compiled`, `torch.compile` may compile a part of the loss.
    """

    is_loss_compiled = False

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.n_tokens = config.vocab_size
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        initialize(self, config)

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return logits [B, T, V] for ids [B, T]; see `Transformer.forward` for the other arguments."""
        return self.lm_head(self.transformer(ids, cache, positions, mask))

    def loss(
        self, ids: Tensor, targets: Tensor, target_positions: Tensor | None = None, reduction: str = "mean"
    ) -> Tensor:
        """Return the cross-entropy in nats, without all logits in memory.

        Args:
            ids: [B, T]
            targets: [B, T], or [n] with `target_positions`.
            target_positions: [n], the positions in the flattened [B * T] that have a target; others need no logits.
            reduction: mean or sum, over the targets.

        Returns:
            []
        """
        hidden = self.transformer(ids).flatten(0, 1)  # [B * T, C]
        if target_positions is not None:
            hidden = hidden[target_positions]  # [n, C]
        loss_sum = linear_cross_entropy(
            hidden, self.lm_head.weight, targets.flatten(), is_compiled=self.is_loss_compiled
        )
        return loss_sum / targets.numel() if reduction == "mean" else loss_sum


def initialize(model: nn.Module, config: GPTConfig) -> None:
    """Set GPT-2's initial weights: normal(0, 0.02), and biases 0.

    Layers that write to the residual path of L blocks get weights smaller by √(2L).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            std = config.initializer_range
            if name.endswith("c_proj"):
                std /= math.sqrt(2 * config.n_layer)
            nn.init.normal_(module.weight, mean=0.0, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
