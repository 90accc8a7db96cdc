"""Prefill and decode with a key-value cache: one loop for prompts of equal or unequal length.

Shapes: B rows, S columns (tokens so far), T columns that are new, C channels, V vocabulary. Rows are aligned on the
right: a shorter one starts in a later column, and positions and mask make it what it would be alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.inference.lookup import by_lookup
from gpt2core.inference.sampling import Sampling, seed_of_each_row, uniforms
from gpt2core.model.inference import Packed
from gpt2core.model.kv_cache import KVCache

GREEDY = Sampling()
KEPT_SHARE = 3 / 4  # of the rows; not at each end, since to leave rows out copies the keys and values of the others
SPARED_TOKENS = 32  # at least, for what the rows begin with to be worth a pass of its own


@torch.inference_mode()
def generate(
    model: Packed,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] | None = None,
    eos_id: int | None = None,
    on_tokens: Callable[[Tensor], None] | None = None,
    *,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    lookup: bool = True,
) -> Tensor:
    """Continue each row of `ids`.

    Args:
        model: in eval mode.
        ids: [B, P], P >= 1, int64.
        max_new_tokens: how many tokens to add.
        temperature, top_k, top_p, min_p, repetition_penalty: see `Sampling`; temperature 0 is greedy.
        seed: of the draws, see `stream`.
        eos_id: a row that drew this token only repeats it; when all have, the rest is filled with it.
        on_tokens: called with each new column [B].
        lookup: see `stream`.

    Returns:
        [B, P + max_new_tokens], on the model's device.

    Raises:
        UserError: an empty prompt, or a sampling option out of range.
    """
    B, P = ids.shape
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    device, _ = placement(model)
    out = torch.full((B, P + max_new_tokens), eos_id or 0, dtype=torch.long, device=device)
    out[:, :P] = ids
    finished = torch.zeros(B, dtype=torch.bool, device=device)
    for end, column in enumerate(stream(model, ids, max_new_tokens, sampling, seed, lookup=lookup), start=P):
        if eos_id is not None:
            column = column.masked_fill(finished, eos_id)
            finished |= column == eos_id
        out[:, end] = column
        if on_tokens:
            on_tokens(column)
        if eos_id is not None and bool(finished.all()):
            break
    return out


def generate_batch(
    model: Packed,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    *,
    eos_id: int | None,
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] | None = None,
    batch_size: int = 32,
    slide: bool = False,
    on_answer: Callable[[], object] = lambda: None,
) -> list[list[int]]:
    """Continue prompts of unequal length; each answer ends before its `eos_id`, and unless `slide` where the context
    is full. Prompts of like length are computed together, and what has ended is soon left out; a row's answer does not
    depend on its neighbours. `on_answer` is called when one has ended.

    Args:
        max_new_tokens: of every answer, or one number for each.

    Returns:
        The new ids of each prompt, in the order of `prompts`.

    Raises:
        UserError: a prompt is empty or, unless `slide`, leaves no room in the context; names its number.
    """
    n_positions = model.config.n_positions
    for number, prompt in enumerate(prompts):
        if not prompt or (len(prompt) >= n_positions and not slide):
            raise UserError(
                f"prompt {number}: {len(prompt)} tokens; the model's context of {n_positions} needs at least one "
                "token and room for one more: shorten it"
            )
    seeds = seed_of_each_row(seed, len(prompts))
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if not slide:
        limits = [min(limit, n_positions - len(prompt)) for limit, prompt in zip(limits, prompts, strict=True)]
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        columns = stream(
            model,
            [prompts[i] for i in rows],
            max(limits[i] for i in rows),
            sampling,
            [seeds[i] for i in rows],
            slide=slide,
        )
        for i, answer in zip(rows, _cut(columns, [limits[i] for i in rows], eos_id, on_answer), strict=True):
            answers[i] = answer
    return answers


def _cut(
    columns: Generator[Tensor, Sequence[int] | None, None],
    limits: list[int],
    eos_id: int | None,
    on_answer: Callable[[], object],
) -> list[list[int]]:
    """Each row's ids before `eos_id`, at most its limit; takes no more columns than the last row needs."""
    answers: list[list[int]] = [[] for _ in limits]
    running = {row for row, limit in enumerate(limits) if limit > 0}
    rows = list(range(len(limits)))  # those that are computed
    kept: list[int] | None = None  # which of them to go on with
    while running:
        for row, token in zip(rows, columns.send(kept).tolist(), strict=True):
            if row not in running:
                continue
            if token != eos_id:
                answers[row].append(token)
            if token == eos_id or len(answers[row]) == limits[row]:
                running.discard(row)
                on_answer()
        kept = None
        if len(running) <= KEPT_SHARE * len(rows):
            kept = [place for place, row in enumerate(rows) if row in running]
            rows = [rows[place] for place in kept]
    return answers


@torch.inference_mode()
def stream(
    model: Packed,
    prompts: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int | None] | None = None,
    *,
    lookup: bool = True,
    slide: bool = True,
) -> Generator[Tensor, Sequence[int] | None, None]:
    """The next token of every row, column by column, as they are computed.

    A column's work is done when it is asked for: whoever stops iterating stops the model. Who sends the numbers of some
    rows goes on with these alone, numbered anew. What all rows begin with, as prompts of one form do, is computed once.

    Args:
        model: in eval mode.
        prompts: B rows of at least one id, of any lengths.
        max_new_tokens: how many columns at most.
        sampling: how to draw.
        seed: of the draws. One for each row, or a single s, which gives row r the seed s + r. What a row draws depends
            on its own seed alone, not on its neighbours. None takes torch's global generator.
        lookup: a single greedy row guesses tokens from its own text and has several checked in one pass, see `Lookup`:
            several columns are then ready at once. They are those that come without it; only where two tokens are
            equally likely, but for the rounding of sums in another order, may the other one be taken.
        slide: beyond the model's context a row goes on with its last `n_positions` tokens, which costs a whole context
            a token. Without it the caller must ignore what a row yields once it has filled the context.

    Yields:
        [B] int64, on the model's device.

    Raises:
        UserError: an empty prompt, or more or fewer seeds than rows.
    """
    device, dtype = placement(model)
    ids, starts = _align_right(prompts, device)  # [B, S], [B]
    B, S = ids.shape
    columns = S + max_new_tokens
    if slide:
        columns = min(columns, model.config.n_positions)
    cache = KVCache(model.config, B, columns, device=device, dtype=dtype)
    if lookup and B == 1 and sampling.greedy:
        yield from by_lookup(model, ids, max_new_tokens, sampling, cache)
        return
    if B > 1 and cache.max_tokens >= S:
        _begin(model, ids, starts, cache)
    chance = uniforms(seed_of_each_row(seed, B), device)
    rows = torch.arange(B, device=device)  # [B], of those that were given
    for _ in range(max_new_tokens):
        hidden = _last_hidden(model, ids, starts, cache)  # [B, C]
        logits = sampling.penalize(model.lm_head(hidden), ids)  # [B, V]
        column = sampling.draw(logits, None if sampling.greedy else next(chance)[rows])  # [B]
        kept = yield column
        ids = torch.cat([ids, column[:, None]], dim=1)  # [B, S + 1]
        if kept is not None:
            index = torch.tensor(kept, device=device)
            ids, rows, starts = ids[index], rows[index], None if starts is None else starts[index]
            cache.keep(index)


def placement(model: Packed) -> tuple[torch.device, torch.dtype]:
    """Where the model computes, and the dtype of its keys and values."""
    weight = model.transformer.wte.weight
    return weight.device, weight.dtype


def _align_right(prompts: Tensor | Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows as one tensor [B, S], and the column [B] in which each starts; None if all start in the first.

    The padding before a row repeats its first token, so that a row's columns hold no token that is not its own.
    """
    rows = [torch.as_tensor(prompt, dtype=torch.long, device=device) for prompt in prompts]
    for number, row in enumerate(rows):
        if not len(row):
            raise UserError(f"prompt {number} is empty: at least one token is needed to continue")
    longest = max(map(len, rows))
    ids = torch.stack([torch.cat([row[:1].expand(longest - len(row)), row]) for row in rows])  # [B, S]
    if all(len(row) == longest for row in rows):
        return ids, None
    return ids, torch.tensor([longest - len(row) for row in rows], device=device)


def _begin(model: Packed, ids: Tensor, starts: Tensor | None, cache: KVCache) -> None:
    """Put what all rows of `ids` [B, S] begin with into the empty cache, from one pass over it alone."""
    B, S = ids.shape
    starts = torch.zeros(B, dtype=torch.long, device=ids.device) if starts is None else starts  # [B]
    columns = torch.arange(S, device=ids.device)
    most = S - 1 - int(starts.max())  # the last token of the shortest row is left for the next pass
    heads = ids.gather(1, starts[:, None] + columns[:most])  # [B, most]
    shared = int((heads == heads[0]).all(0).cumprod(0).sum())
    if (B - 1) * shared < SPARED_TOKENS:
        return
    device, dtype = placement(model)
    alone = KVCache(model.config, 1, shared, device=device, dtype=dtype)
    model.transformer(heads[:1, :shared], alone)
    # A row that starts later has fewer of these tokens in the first columns, after padding that nobody looks at.
    cache.fill(alone, (columns[:shared] - starts[:, None]).clamp(min=0))


def _last_hidden(model: Packed, ids: Tensor, starts: Tensor | None, cache: KVCache) -> Tensor:
    """The hidden state from which the token after `ids` [B, S] is drawn: by the cache while it has room -> [B, C]"""
    S, n_positions = ids.size(1), model.config.n_positions
    usable: KVCache | None = cache
    first, new = 0, ids[:, cache.length :]  # [B, T]
    if cache.max_tokens < S:
        # Positions are absolute: sliding the window by one moves every token, so nothing cached stays true.
        first, new, usable = S - n_positions, ids[:, -n_positions:], None  # [B, n_positions]
    if starts is None:
        return model.transformer(new, usable)[:, -1]
    positions, mask = _positions_and_mask((starts - first).clamp(min=0), new.size(1), S - first)
    positions = positions.clamp(max=n_positions - 1)  # of rows that are full and whose tokens nobody looks at
    return model.transformer(new, usable, positions, mask)[:, -1]


def _positions_and_mask(starts: Tensor, T: int, S: int) -> tuple[Tensor, Tensor]:
    """For the last T of S columns, when rows start in the columns `starts` [B]: [B, T] and [B, 1, T, S].

    Padding sees itself too, so that no query is left without a key.
    """
    columns = torch.arange(S, device=starts.device)
    queries = columns[S - T :]  # [T]
    positions = (queries - starts[:, None]).clamp(min=0)  # [B, T]
    real = columns >= starts[:, None]  # [B, S]
    mask = (real[:, None] & (columns <= queries[:, None])) | (columns == queries[:, None])  # [B, T, S]
    return positions, mask[:, None]
