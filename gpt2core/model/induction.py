"""Initial weights with an induction circuit, written into the first two blocks.

A language model learns early, and suddenly, to look for what followed the present token when it last occurred, and to
predict that (Olsson et al. 2022, "In-context Learning and Induction Heads"). This takes millions of training tokens;
with a few thousand it never happens. Here the circuit exists from the start, and training continues from it (structured
initialization: Trockman and Kolter 2023, "Mimetic Initialization"). Every weight can still change, and the model
directory is that of any other GPT-2.

The residual path of C channels, H heads of D = C / H, is divided: the first 2 D hold the token, the next D the token
before it, the last D the position.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from gpt2core.errors import UserError
from gpt2core.model.attention import CausalSelfAttention
from gpt2core.model.gpt import GPT

EMBEDDING_STD = 0.1  # standard deviation of the embeddings: several times what GPT-2's initial blocks add
BEFORE_SHARPNESS = 60.0  # what a query adds to the score of the position before it, in nats at most
SAME_SHARPNESS = 20.0  # and to the score of a position that follows the same token
COPY_GAIN = 6.0  # weight of the copied token relative to the present one
HIGHEST_FREQUENCY, LOWEST_FREQUENCY = 1.5, 0.02  # of the positions' sines, in radians per token


@torch.no_grad()
def write_induction_circuit(model: GPT) -> None:
    """Replace embeddings and parts of the first two blocks' attention; draws from torch's global generator.

    Raises:
        UserError: the model has no room for the circuit.
    """
    c = model.config
    if c.n_layer < 2 or c.n_head < 4 or c.n_embd // c.n_head % 2 or not c.tie_word_embeddings:
        raise UserError(
            f"an induction circuit needs 2 blocks, 4 heads of even size and a tied head, this model has {c.n_layer} "
            f"and {c.n_head} of {c.n_embd // c.n_head}; change pretrain.n_layer, n_head, n_embd, or take init: random"
        )
    C, D = c.n_embd, c.n_embd // c.n_head
    token, before, place = slice(0, 2 * D), slice(2 * D, 3 * D), slice(C - D, C)
    nn.init.normal_(model.transformer.wte.weight, std=EMBEDDING_STD)
    model.transformer.wte.weight[:, 2 * D :] = 0
    model.transformer.wpe.weight.zero_()
    model.transformer.wpe.weight[:, place] = math.sqrt(2) * EMBEDDING_STD * _sines(c.n_positions, D)
    # NumPy's decomposition: PyTorch's is MKL's, and differs from CPU to CPU.
    directions = torch.from_numpy(np.linalg.qr(torch.randn(2 * D, D).numpy())[0])  # [2 D, D]
    name = directions.T  # [D, 2 D], what a token's successor knows of it

    # Block 0: head 0 attends to the previous position, and copies its token into `before`.
    size = EMBEDDING_STD * math.sqrt(3 * D / C)  # root mean square of the residual path, by which the norm divides
    head = _Head(model, block=0, number=0)
    strength = _strength(BEFORE_SHARPNESS, D, norm=math.sqrt(D) * EMBEDDING_STD / size)
    head.query[:, place] = strength * _one_back(D)
    head.key[:, place] = strength * torch.eye(D)
    head.value[:, token] = size * name
    head.out[before] = torch.eye(D)

    # Block 1: heads 0 and 1 attend to positions whose `before` is the present token, and add half of their token each.
    size = EMBEDDING_STD * math.sqrt(4 * D / C)
    for number in (0, 1):
        half = slice(number * D, (number + 1) * D)
        head = _Head(model, block=1, number=number)
        strength = _strength(SAME_SHARPNESS, D, norm=math.sqrt(D) * EMBEDDING_STD / size)
        head.query[:, token] = strength * name
        head.key[:, before] = strength * torch.eye(D)
        head.value[:, half] = COPY_GAIN * size * torch.eye(D)
        head.out[half] = torch.eye(D)


class _Head:
    """Views of one head's weights, set to zero: query, key, value [D, C]; out [C, D]."""

    def __init__(self, model: GPT, block: int, number: int):
        attention = model.transformer.h[block].attn
        assert isinstance(attention, CausalSelfAttention)
        H = attention.n_head
        q, k, v = attention.c_attn.weight.unflatten(0, (3, H, -1))[:, number]  # [D, C] each
        self.query, self.key, self.value = q, k, v
        self.out: Tensor = attention.c_proj.weight.unflatten(1, (H, -1))[:, number]  # [C, D]
        for weights in (q, k, v, self.out):
            weights.zero_()


def _frequencies(D: int) -> Tensor:
    """Return frequencies [D / 2], evenly spaced by their logarithm."""
    return torch.logspace(math.log10(HIGHEST_FREQUENCY), math.log10(LOWEST_FREQUENCY), D // 2)


def _sines(n_positions: int, D: int) -> Tensor:
    """Return sines, then cosines of each position (Vaswani et al. 2017, section 3.5): [n_positions, D]."""
    angles = torch.arange(n_positions)[:, None] * _frequencies(D)  # [n_positions, D / 2]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _one_back(D: int) -> Tensor:
    """Return the rotation [D, D] that turns the sines of a position into those of the one before it."""
    sin, cos = _frequencies(D).sin().diag(), _frequencies(D).cos().diag()
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])


def _strength(sharpness: float, D: int, norm: float) -> float:
    """Return the scale of queries and keys with which two equal vectors of this norm score `sharpness` over √D."""
    return math.sqrt(sharpness * math.sqrt(D)) / norm
