"""Prefill and decode with a key-value cache: one loop for prompts of equal or unequal length.

Shapes: B rows, S columns (tokens so far), T new columns, C channels, V vocabulary. Rows are aligned on the right: a
shorter row starts in a later column, and positions and mask give it the same result as alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.inference.lookup import by_lookup
from gpt2core.inference.sampling import Sampling, next_logits, seed_of_each_row, uniforms
from gpt2core.model.inference import Packed
from gpt2core.model.kv_cache import KVCache

GREEDY = Sampling()
RUNNING_SHARE = 3 / 4  # of the rows, below which ended rows are dropped; dropping copies the other rows' cache
MIN_SHARED_TOKENS = 32  # tokens that a separate pass over a common prefix must save


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
        max_new_tokens: number of tokens to add.
        temperature: see `Sampling`; 0 is greedy.
        top_k: see `Sampling`.
        top_p: see `Sampling`.
        seed: random seed, see `stream`.
        eos_id: a row ends with this token, and is filled with it.
        on_tokens: called with each new column [B].
        min_p: see `Sampling`.
        repetition_penalty: see `Sampling`.
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
    """Continue prompts of unequal length.

    Prompts of similar length are computed together, and rows that have ended are dropped. An answer does not depend on
    the other prompts.

    Args:
        model: in eval mode.
        prompts: ids of each prompt, at least one.
        max_new_tokens: of every answer, or one number per prompt.
        eos_id: an answer ends before this token.
        sampling: how tokens are sampled.
        seed: random seed, see `stream`.
        batch_size: prompts that are computed together.
        slide: continue beyond the model's context, see `stream`. Otherwise, an answer ends when the context is full.
        on_answer: called when an answer has ended.

    Returns:
        The new ids of each prompt, in the order of `prompts`.

    Raises:
        UserError: a prompt is empty or, unless `slide`, fills the context; names its number.
    """
    check_prompts(model, prompts, slide)
    seeds = seed_of_each_row(seed, len(prompts))
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if not slide:
        room = model.config.n_positions
        limits = [min(limit, room - len(prompt)) for limit, prompt in zip(limits, prompts, strict=True)]
    answers: list[list[int]] = [[] for _ in prompts]
    for rows in by_length(prompts, batch_size):
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


def check_prompts(model: Packed, prompts: Sequence[Sequence[int]], slide: bool = False) -> None:
    """Raise UserError that names a prompt which is empty or, unless `slide`, fills the context."""
    n_positions = model.config.n_positions
    for number, prompt in enumerate(prompts):
        if not prompt or (len(prompt) >= n_positions and not slide):
            raise UserError(
                f"prompt {number}: {len(prompt)} tokens; the model's context of {n_positions} needs at least one "
                "token and room for one more: shorten it"
            )


def by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return the numbers of the prompts in groups of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _cut(
    columns: Generator[Tensor, Sequence[int] | None, None],
    limits: list[int],
    eos_id: int | None,
    on_answer: Callable[[], object],
) -> list[list[int]]:
    """Return each row's ids before `eos_id`, up to its limit; requests no more columns than the last row needs."""
    answers: list[list[int]] = [[] for _ in limits]
    running = {row for row, limit in enumerate(limits) if limit > 0}
    rows = list(range(len(limits)))  # computed rows
    selected: list[int] | None = None  # places in `rows` to continue with; None: all
    while running:
        for row, token in zip(rows, columns.send(selected).tolist(), strict=True):
            if row not in running:
                continue
            if token != eos_id:
                answers[row].append(token)
            if token == eos_id or len(answers[row]) == limits[row]:
                running.discard(row)
                on_answer()
        selected = None
        if len(running) <= RUNNING_SHARE * len(rows):
            selected = [place for place, row in enumerate(rows) if row in running]
            rows = [rows[place] for place in selected]
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
    """Yield the next token of every row, column by column.

    A column is computed when it is requested, so stopping the iteration stops the model. Sending indices of rows
    continues with these rows only, renumbered. A prefix that all rows share, such as a prompt template, is computed
    once.

    Args:
        model: in eval mode.
        prompts: B rows of at least one id, of any lengths.
        max_new_tokens: maximum number of columns.
        sampling: how tokens are sampled.
        seed: random seed of each row, or a single s, which gives row r the seed s + r. A row's tokens depend on its own
            seed only, not on other rows. None takes torch's global generator.
        lookup: a single greedy row drafts tokens from its own text and checks several in one pass, see `Lookup`. The
            tokens are the same as without it, unless two tokens are equally likely up to the rounding of sums in
            another order.
        slide: beyond the model's context, continue with the last `n_positions` tokens, which costs a whole context per
            token. Without it, the caller must ignore a row's tokens after it has filled the context.

    Yields:
        [B] int64, on the model's device.

    Raises:
        UserError: an empty prompt, more or fewer seeds than rows, or logits that are not finite.
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
        _fill_shared_prefix(model, ids, starts, cache)
    random_numbers = uniforms(seed_of_each_row(seed, B), device)
    rows = torch.arange(B, device=device)  # [B], numbers of the remaining prompts
    for _ in range(max_new_tokens):
        hidden = _last_hidden(model, ids, starts, cache)  # [B, C]
        logits = next_logits(model, hidden, ids, sampling)  # [B, V]
        column = sampling.draw(logits, None if sampling.greedy else next(random_numbers)[rows])  # [B]
        selected = yield column
        ids = torch.cat([ids, column[:, None]], dim=1)  # [B, S + 1]
        if selected is not None:
            index = torch.tensor(selected, device=device)
            ids, rows, starts = ids[index], rows[index], None if starts is None else starts[index]
            cache.keep(index)


def placement(model: Packed) -> tuple[torch.device, torch.dtype]:
    """Return the model's device, and the dtype of its keys and values."""
    weight = model.transformer.wte.weight
    return weight.device, weight.dtype


def _align_right(prompts: Tensor | Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return rows as one tensor [B, S], and the column [B] in which each starts (None if all start in the first).

    The padding before a row repeats its first token, so that a row contains only its own tokens.
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


def _fill_shared_prefix(model: Packed, ids: Tensor, starts: Tensor | None, cache: KVCache) -> None:
    """Compute the common prefix of all rows of `ids` [B, S] in one pass, and put it into the empty cache."""
    B, S = ids.shape
    starts = torch.zeros(B, dtype=torch.long, device=ids.device) if starts is None else starts  # [B]
    columns = torch.arange(S, device=ids.device)
    most = S - 1 - int(starts.max())  # without the last token of the shortest row
    heads = ids.gather(1, starts[:, None] + columns[:most])  # [B, most]
    shared = int((heads == heads[0]).all(0).cumprod(0).sum())
    if (B - 1) * shared < MIN_SHARED_TOKENS:
        return
    device, dtype = placement(model)
    prefix = KVCache(model.config, 1, shared, device=device, dtype=dtype)
    model.transformer(heads[:1, :shared], prefix)
    # A row that starts later has fewer of these tokens in the first columns, after masked padding.
    cache.fill(prefix, (columns[:shared] - starts[:, None]).clamp(min=0))


def _last_hidden(model: Packed, ids: Tensor, starts: Tensor | None, cache: KVCache) -> Tensor:
    """Return the hidden state [B, C] that predicts the token after `ids` [B, S]; uses the cache while it has room."""
    S, n_positions = ids.size(1), model.config.n_positions
    usable: KVCache | None = cache
    first, new = 0, ids[:, cache.length :]  # [B, T]
    if cache.max_tokens < S:
        # Positions are absolute: sliding the window by one moves every token, so the cache is invalid.
        first, new, usable = S - n_positions, ids[:, -n_positions:], None  # [B, n_positions]
    if starts is None:
        return model.transformer(new, usable)[:, -1]
    positions, mask = _positions_and_mask((starts - first).clamp(min=0), new.size(1), S - first)
    positions = positions.clamp(max=n_positions - 1)  # for full rows, whose tokens are ignored
    return model.transformer(new, usable, positions, mask)[:, -1]


def _positions_and_mask(starts: Tensor, T: int, S: int) -> tuple[Tensor, Tensor]:
    """Return positions [B, T] and mask [B, 1, T, S] of the last T of S columns; rows start in columns `starts` [B].

    Padding attends to itself, so that every query has a key.
    """
    columns = torch.arange(S, device=starts.device)
    queries = columns[S - T :]  # [T]
    positions = (queries - starts[:, None]).clamp(min=0)  # [B, T]
    real = columns >= starts[:, None]  # [B, S]
    mask = (real[:, None] & (columns <= queries[:, None])) | (columns == queries[:, None])  # [B, T, S]
    return positions, mask[:, None]
