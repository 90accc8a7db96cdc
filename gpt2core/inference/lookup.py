"""Prompt lookup decoding (Saxena 2023): draft the tokens that followed an earlier occurrence of the last two tokens.

The speed of decoding is limited by reading weights from memory, and a pass over a few tokens reads them as often as a
pass over one. The model checks a draft in one pass, and the part is kept that greedy decoding would write (speculative
decoding, Leviathan et al. 2023).

Shapes: S tokens so far, k drafted ones, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from gpt2core.inference.sampling import Sampling, next_logits
from gpt2core.model.inference import Packed
from gpt2core.model.kv_cache import KVCache

MAX_DRAFT_TOKENS = 10
# A pass over two tokens takes 25% longer than one over one token, and about 10% more for each further token
# (docs/speed.md). A token is drafted if the probability that it is reached and correct is higher than this.
MIN_PROBABILITY = 0.35
MEMORY_TOKENS = 6  # effective number of drafts in the running mean of correct ones
INITIAL_ACCURACY = 0.5


class Lookup:
    """The text of one row, and drafts of its continuation.

    Each token, also of the prompt, shows whether its draft was correct. This gives the accuracy to expect without
    running the model.

    >>> lookup = Lookup([5, 6, 7, 8, 5, 6])
    >>> lookup.draft(limit=10)
    [7]
    >>> lookup.extend([7, 8, 5, 6, 7])
    >>> lookup.draft(limit=10)
    [8, 5, 6, 7]
    """

    def __init__(self, ids: Iterable[int]):
        self._ids: list[int] = []
        self._after: dict[tuple[int, int], int] = {}  # two tokens -> the place after their last occurrence
        self._source: int | None = None  # the place of the token that is expected next
        self._accuracy = INITIAL_ACCURACY  # of recent drafts, a running mean
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Add tokens to the text."""
        for token in ids:
            self._push(token)

    def _push(self, token: int) -> None:
        if self._source is not None:
            is_correct = self._ids[self._source] == token
            self._accuracy += (is_correct - self._accuracy) / MEMORY_TOKENS
            self._source = self._source + 1 if is_correct else None
        self._ids.append(token)
        if len(self._ids) < 2:
            return
        pair = (self._ids[-2], token)
        if self._source is None:
            self._source = self._after.get(pair)
        self._after[pair] = len(self._ids)

    def draft(self, limit: int) -> list[int]:
        """Return the tokens that may come next and are worth a check; at most `limit`, often none."""
        draft: list[int] = []
        if self._source is None:
            return draft
        probability = self._accuracy
        while len(draft) < min(limit, MAX_DRAFT_TOKENS) and probability >= MIN_PROBABILITY:
            place = self._source + len(draft)
            draft.append(self._ids[place] if place < len(self._ids) else draft[place - len(self._ids)])
            probability *= self._accuracy
        return draft


def by_lookup(model: Packed, ids: Tensor, max_new_tokens: int, sampling: Sampling, cache: KVCache) -> Iterator[Tensor]:
    """Yield the most likely tokens after `ids` [1, S], each as a column [1]; a pass yields what it accepts of a draft.

    Tokens beyond the size of the cache are computed from the last `n_positions` tokens, without drafts.
    """
    text = Lookup(ids[0].tolist())
    end = ids.size(1) + max_new_tokens
    while (S := ids.size(1)) < end:
        # If the whole draft is correct, the model's own token comes after it.
        draft = text.draft(limit=min(end - 1, cache.max_tokens, model.config.n_positions) - S)
        new = _accepted(model, ids, draft, sampling, cache)  # [n]
        for token in new:
            yield token[None]
        text.extend(new.tolist())
        ids = torch.cat([ids, new[None]], dim=1)  # [1, S + n]


def _accepted(model: Packed, ids: Tensor, draft: list[int], sampling: Sampling, cache: KVCache) -> Tensor:
    """Return the tokens [n] of the draft that greedy decoding would write after `ids` [1, S], and the next token.

    One pass computes the most likely token after each token of the draft. Rejected tokens are removed from the cache.
    """
    S, k = ids.size(1), len(draft)
    drafted = torch.cat([ids, ids.new_tensor([draft])], dim=1) if draft else ids  # [1, S + k]
    if cache.max_tokens < S:  # the window slides
        hidden = model.transformer(drafted[:, -model.config.n_positions :])[0, -1:]  # [1, C]
    else:
        hidden = model.transformer(drafted[:, cache.length :], cache)[0, -k - 1 :]  # [k + 1, C]
    if not draft:
        return sampling.draw(next_logits(model, hidden, ids, sampling))  # [1]
    # Row j has seen j tokens of the draft. Replace the others by the first token, which it has seen.
    unseen = torch.ones(k + 1, S + k, dtype=torch.bool, device=ids.device).triu(S)  # [k + 1, S + k]
    logits = next_logits(model, hidden, torch.where(unseen, drafted[:, :1], drafted), sampling)  # [k + 1, V]
    most_likely = sampling.draw(logits)  # [k + 1]
    n = 1 + int((most_likely[:-1] == drafted[0, S:]).cumprod(0).sum())
    cache.cut(S + n - 1)
    return most_likely[:n]
