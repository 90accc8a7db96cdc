"""Prefill and decode with a key-value cache, for prompts of equal or unequal length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.generate.sampling import Sampling
from gpt2core.model import GPT
from gpt2core.model.kv_cache import KVCache


@torch.inference_mode()
def generate(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos_id: int | None = None,
    on_tokens: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Continue each row of `ids`.

    Args:
        model: in eval mode.
        ids: [B, P], P >= 1, int64.
        max_new_tokens: how many tokens to add.
        temperature, top_k, top_p: see `Sampling`; 0 is greedy.
        seed: of the draws; None takes torch's global generator.
        eos_id: a row that drew this token only repeats it; when all have, the rest is filled with it.
        on_tokens: called with each new column [B], for streaming.

    Returns:
        [B, P + max_new_tokens]. Beyond the model's context the oldest tokens fall out of sight, one a step.

    Raises:
        UserError: an empty prompt, or a sampling option out of range.
    """
    B, P = ids.shape
    if P == 0:
        raise UserError("the prompt is empty: at least one token is needed to continue")
    out = torch.full((B, P + max_new_tokens), eos_id or 0, dtype=torch.long, device=ids.device)
    out[:, :P] = ids
    state = _Decoder(model, B, min(P + max_new_tokens, model.config.n_positions), ids.device)
    sampling, generator = Sampling(temperature, top_k, top_p), _generator(seed, ids.device)
    finished = torch.zeros(B, dtype=torch.bool, device=ids.device)
    for end in range(P, P + max_new_tokens):
        column = sampling.draw(state.next_logits(out[:, :end]), generator)  # [B]
        if eos_id is not None:
            column = column.masked_fill(finished, eos_id)
            finished |= column == eos_id
        out[:, end] = column
        if on_tokens:
            on_tokens(column)
        if eos_id is not None and bool(finished.all()):
            break
    return out


class _Decoder:
    """Logits for the token after a growing prefix: by the cache while it fits, of the last context's worth after."""

    def __init__(self, model: GPT, batch_size: int, max_tokens: int, device: torch.device):
        dtype = model.transformer.wte.weight.dtype
        self.model = model
        self.cache = KVCache(model.config, batch_size, max_tokens, device=device, dtype=dtype)

    def next_logits(self, ids: Tensor) -> Tensor:
        """[B, S] -> [B, V]"""
        n_positions = self.model.config.n_positions
        if ids.size(1) > n_positions:
            # Positions are absolute: sliding the window by one moves every token, so nothing cached stays true.
            hidden = self.model.transformer(ids[:, -n_positions:])  # [B, n_positions, C]
        else:
            hidden = self.model.transformer(ids[:, self.cache.length :], self.cache)  # [B, T, C]
        return self.model.lm_head(hidden[:, -1])  # [B, V]


@torch.inference_mode()
def generate_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos_id: int,
    sampling: Sampling | None = None,
    seed: int | None = None,
    batch_size: int = 32,
) -> list[list[int]]:
    """Continue prompts of unequal length; each answer ends before its `eos_id`, or where the context is full.

    Rows are padded on the left; masks and positions make each row what it would be alone. Prompts of like length are
    computed together.

    Returns:
        The new ids of each prompt, in the order of `prompts`.

    Raises:
        UserError: a prompt is empty or leaves no room in the context; names its number.
    """
    n_positions = model.config.n_positions
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < n_positions:
            raise UserError(
                f"prompt {number}: {len(prompt)} tokens; the model's context of {n_positions} needs at least one "
                "token and room for one more: shorten it"
            )
    sampling = sampling or Sampling()
    device = model.transformer.wte.weight.device
    generator = _generator(seed, device)
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for row, answer in zip(
            rows,
            _batch(model, [prompts[i] for i in rows], max_new_tokens, eos_id, sampling, generator, device),
            strict=True,
        ):
            answers[row] = answer
    return answers


def _batch(
    model: GPT,
    prompts: list[Sequence[int]],
    max_new_tokens: int,
    eos_id: int,
    sampling: Sampling,
    generator: torch.Generator | None,
    device: torch.device,
) -> list[list[int]]:
    B, longest = len(prompts), max(len(prompt) for prompt in prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    steps = min(max_new_tokens, model.config.n_positions - int(lengths.min()))
    ids = torch.full((B, longest), eos_id, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt, device=device)
    # Column s of a row is padding where s < longest - length; padding sees itself, so that no row is all masked.
    real = torch.arange(longest + steps, device=device) >= (longest - lengths)[:, None]  # [B, S]
    cache = KVCache(model.config, B, longest + steps, device=device, dtype=model.transformer.wte.weight.dtype)
    positions = (torch.arange(longest, device=device) - (longest - lengths)[:, None]).clamp(min=0)  # [B, T]
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    mask = (causal & real[:, None, :longest]) | torch.eye(longest, dtype=torch.bool, device=device)  # [B, T, T]
    hidden = model.transformer(ids, cache, positions, mask[:, None])  # [B, T, C]
    answers: list[list[int]] = [[] for _ in prompts]
    running = set(range(B))
    for step in range(steps):
        column = sampling.draw(model.lm_head(hidden[:, -1]), generator)  # [B]
        for row, token in enumerate(column.tolist()):
            if row in running:
                if token == eos_id:
                    running.discard(row)
                else:
                    answers[row].append(token)
                    if len(prompts[row]) + len(answers[row]) >= model.config.n_positions:
                        running.discard(row)
        if not running or step + 1 == steps:
            break
        position = (lengths + step)[:, None].clamp(max=model.config.n_positions - 1)  # [B, 1]
        mask = real[:, None, None, : longest + step + 1]  # [B, 1, 1, S]
        hidden = model.transformer(column[:, None], cache, position, mask)  # [B, 1, C]
    return answers


def _generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(seed)
