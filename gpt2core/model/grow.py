"""More positions or tokens for a trained model: its embeddings get rows, and what it computed before stays."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.model.gpt import GPT


@torch.no_grad()
def grow(model: GPT, *, n_positions: int | None = None, vocab_size: int | None = None) -> GPT:
    """Return a model with more positions or tokens, with the same logits for texts of the old ones.

    A new position starts as the old one at the same place of a window before it, as in Longformer (Beltagy et al. 2020,
    section 5). A new token starts as the mean of all tokens (Hewitt 2021), so that it is about as likely as an average
    one, and its logit changes no order among the others.

    Args:
        model: its weights are shared with the result where they do not grow.
        n_positions: the new context in tokens; None: as it is.
        vocab_size: the new number of tokens; None: as it is.

    Raises:
        UserError: the model has more of them.
    """
    config, old = model.config, model.state_dict()
    n_positions, vocab_size = n_positions or config.n_positions, vocab_size or config.vocab_size
    for name, number in (("n_positions", n_positions), ("vocab_size", vocab_size)):
        if number < getattr(config, name):
            raise UserError(f"{name}: {number} is less than the model's {getattr(config, name)}; a model only grows")
    with torch.device("meta"):
        grown = GPT(dataclasses.replace(config, n_positions=n_positions, vocab_size=vocab_size))
    rows = torch.arange(n_positions) % config.n_positions
    state = old | {"transformer.wpe.weight": old["transformer.wpe.weight"][rows]}
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state[name] = _with_mean_rows(old[name], vocab_size)
    grown.load_state_dict(state, assign=True)
    if config.tie_word_embeddings:
        grown.lm_head.weight = grown.transformer.wte.weight
    for parameter in grown.parameters():
        parameter.requires_grad_(True)
    return grown


def _with_mean_rows(weight: Tensor, n_rows: int) -> Tensor:
    """Return a matrix [n_rows, C] whose rows after those of `weight` are their mean."""
    n_new = n_rows - len(weight)
    return torch.cat([weight, weight.mean(0, keepdim=True).expand(n_new, -1)])
