"""Guesses of a row's next tokens: what followed when its last two tokens stood there before.

Decoding waits for the weights to come from memory, and a pass over a few tokens reads them no more often than a pass
over one. So a draft is copied from the text, the model sees it in one pass, and as much of it stays as the model would
have written itself ("prompt lookup decoding", Saxena 2023; the check is that of speculative decoding, Leviathan et al.
2023, where the likeliest token is taken).

Shapes: S tokens so far, k drafted ones, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from gpt2core.inference.sampling import Sampling
from gpt2core.model.inference import Packed
from gpt2core.model.kv_cache import KVCache

MAX_DRAFT_TOKENS = 10
# A pass over two tokens takes a quarter longer than one over one, and about a tenth more for each further one
# (docs/speed.md): a token is drafted if it is likelier than this to be reached and right.
WORTHWHILE = 0.35
MEMORY_TOKENS = 6  # the share of right guesses is a mean over about so many
FIRST_SHARE = 0.5


class Lookup:
    """The text of one row, and what to expect after it.

    Each token that comes, also of the prompt, shows whether the guess was right: how far to trust the next is known
    without trying it in the model.

    >>> lookup = Lookup([5, 6, 7, 8, 5, 6])
    >>> lookup.draft(limit=10)
    [7]
    >>> lookup.extend([7, 8, 5, 6, 7])
    >>> lookup.draft(limit=10)
    [8, 5, 6, 7]
    """

    def __init__(self, ids: Iterable[int]):
        self._ids: list[int] = []
        self._after: dict[tuple[int, int], int] = {}  # two tokens -> the place after them, where they stood last
        self._source: int | None = None  # the place of the token that is expected next
        self._share = FIRST_SHARE  # of the guesses of late that were right
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Take the tokens that came."""
        for token in ids:
            self._push(token)

    def _push(self, token: int) -> None:
        if self._source is not None:
            is_right = self._ids[self._source] == token
            self._share += (is_right - self._share) / MEMORY_TOKENS
            self._source = self._source + 1 if is_right else None
        self._ids.append(token)
        if len(self._ids) < 2:
            return
        pair = (self._ids[-2], token)
        if self._source is None:
            self._source = self._after.get(pair)
        self._after[pair] = len(self._ids)

    def draft(self, limit: int) -> list[int]:
        """What may come next, so far as a pass over it is worth while; at most `limit` tokens, often none."""
        draft: list[int] = []
        if self._source is None:
            return draft
        chance = self._share
        while len(draft) < min(limit, MAX_DRAFT_TOKENS) and chance >= WORTHWHILE:
            place = self._source + len(draft)
            draft.append(self._ids[place] if place < len(self._ids) else draft[place - len(self._ids)])
            chance *= self._share
        return draft


def by_lookup(model: Packed, ids: Tensor, max_new_tokens: int, sampling: Sampling, cache: KVCache) -> Iterator[Tensor]:
    """The likeliest tokens after `ids` [1, S], each as a column [1]; from a pass there come as many as it agrees with.

    Args:
        model: in eval mode.
        ids: [1, S] int64, on the model's device.
        max_new_tokens: how many tokens.
        sampling: its repetition penalty counts.
        cache: empty. What goes beyond its size is computed from the last `n_positions` tokens, without drafts.
    """
    text = Lookup(ids[0].tolist())
    end = ids.size(1) + max_new_tokens
    while (S := ids.size(1)) < end:
        # All of the draft may be right, and the model's own token comes after it.
        draft = text.draft(limit=min(end - 1, cache.max_tokens, model.config.n_positions) - S)
        new = _agreed(model, ids, draft, sampling, cache)  # [n]
        for token in new:
            yield token[None]
        text.extend(new.tolist())
        ids = torch.cat([ids, new[None]], dim=1)  # [1, S + n]


def _agreed(model: Packed, ids: Tensor, draft: list[int], sampling: Sampling, cache: KVCache) -> Tensor:
    """As many tokens of the draft as the model would write after `ids` [1, S], and its own one after these -> [n]

    One pass tells the likeliest token after each one of the draft. What the cache got beyond is cut off again.
    """
    S, k = ids.size(1), len(draft)
    tried = torch.cat([ids, ids.new_tensor([draft])], dim=1) if draft else ids  # [1, S + k]
    if cache.max_tokens < S:  # the window slides
        hidden = model.transformer(tried[:, -model.config.n_positions :])[0, -1:]  # [1, C]
    else:
        hidden = model.transformer(tried[:, cache.length :], cache)[0, -k - 1 :]  # [k + 1, C]
    if not draft:
        return sampling.penalize(model.lm_head(hidden), ids).argmax(-1)  # [1]
    # Row j has seen j tokens of the draft. The others become the first token, which it has seen anyway.
    unseen = torch.ones(k + 1, S + k, dtype=torch.bool, device=ids.device).triu(S)  # [k + 1, S + k]
    logits = sampling.penalize(model.lm_head(hidden), torch.where(unseen, tried[:, :1], tried))  # [k + 1, V]
    likeliest = logits.argmax(-1)  # [k + 1]
    n = 1 + int((likeliest[:-1] == tried[0, S:]).cumprod(0).sum())
    cache.cut(S + n - 1)
    return likeliest[:n]
