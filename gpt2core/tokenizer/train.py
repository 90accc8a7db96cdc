"""Learning of a vocabulary: byte-pair encoding (Sennrich et al. 2016), or one token per character."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable

import regex

from gpt2core import runtime
from gpt2core.errors import UserError
from gpt2core.tokenizer.byte_pair import WORD_PATTERN, Tokenizer, printable_bytes

Pair = tuple[int, int]


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn `vocab_size` tokens from texts; see `merge_words`."""
    return merge_words(count_words(documents), vocab_size)


def count_words(documents: Iterable[str]) -> Counter[str]:
    """Count the words that GPT-2's pattern matches; the merges depend on nothing else."""
    pattern = regex.compile(WORD_PATTERN)
    words: Counter[str] = Counter()
    for document in documents:
        words.update(pattern.findall(document))
    return words


def merge_words(words: Counter[str], vocab_size: int) -> Tokenizer:
    """Learn `vocab_size` tokens: 256 bytes, `vocab_size - 257` merges, and `<|endoftext|>` last, as in GPT-2.

    Each round merges the pair of tokens that is most frequent inside words. If several pairs are equally frequent, it
    merges the pair with the lowest ids, so the result depends on the corpus alone. Counts are updated only for words
    that change, and a heap holds the most frequent pair. The cost of a round therefore depends on the words that it
    changes, not on the size of the corpus.

    Raises:
        UserError: the corpus has too few different pairs for `vocab_size` tokens.
    """
    tokens = [bytes([byte]) for byte in printable_bytes()]
    id_of_byte = {token[0]: i for i, token in enumerate(tokens)}
    spelled = [[id_of_byte[byte] for byte in word.encode()] for word in words]
    frequency = list(words.values())

    counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, ids in enumerate(spelled):
        for pair in zip(ids, ids[1:], strict=False):
            counts[pair] += frequency[index]
            words_with[pair].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    merges: list[tuple[bytes, bytes]] = []
    for _ in runtime.progress(range(len(tokens), vocab_size - 1), what="learn tokens", unit="token"):
        count, pair = _most_frequent(heap, counts)
        if count == 0:
            raise UserError(
                f"tokenizer.vocab_size: {vocab_size} is more than this corpus gives; "
                f"it has at most {len(tokens) + 1} tokens: lower vocab_size or add text"
            )
        new = len(tokens)
        merges.append((tokens[pair[0]], tokens[pair[1]]))
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        changed: set[Pair] = set()
        for index in words_with.pop(pair):
            old, ids = spelled[index], _merge(spelled[index], pair, new)
            for neighbors in zip(old, old[1:], strict=False):
                counts[neighbors] -= frequency[index]
                changed.add(neighbors)
            for neighbors in zip(ids, ids[1:], strict=False):
                counts[neighbors] += frequency[index]
                words_with[neighbors].add(index)
                changed.add(neighbors)
            spelled[index] = ids
        for neighbors in changed:
            heapq.heappush(heap, (-counts[neighbors], neighbors))

    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges, eot_id=len(tokens))


def _most_frequent(heap: list[tuple[int, Pair]], counts: Counter[Pair]) -> tuple[int, Pair]:
    """Pop the best pair, passing over entries whose count is out of date; count 0 when none is left."""
    while heap:
        negative, pair = heapq.heappop(heap)
        if -negative == counts[pair] > 0:
            return -negative, pair
    return 0, (0, 0)


def _merge(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Replace each `pair` in `ids`, from the left, by `new`."""
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def train_char(documents: Iterable[str]) -> Tokenizer:
    """Return one token per character of the corpus, in code point order, then `<|endoftext|>`.

    A character outside ASCII has several bytes. Its bytes and prefixes are tokens too, after the characters and in the
    order in which they must merge; no encoded text contains them.
    """
    characters = _characters(documents)
    if not characters:
        raise UserError("the corpus is empty: a character tokenizer needs at least one character")
    tokens, merges = _spelled(characters)
    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges, eot_id=len(tokens))


def extend_char(base: Tokenizer, documents: Iterable[str]) -> Tokenizer:
    """Return a character tokenizer that also has the characters of the documents, with ids after those of `base`."""
    new = [character for character in _characters(documents) if character.encode() not in base.ranks]
    tokens, merges = _spelled(new)
    added = [token for token in tokens if token not in base.ranks]
    ranks = base.ranks | {token: base.vocab_size + i for i, token in enumerate(added)}
    all_merges = sorted({*base.merges, *merges}, key=lambda merge: (len(merge[0]), merge))
    return Tokenizer(ranks, all_merges, base.eot_id)


def _characters(documents: Iterable[str]) -> list[str]:
    return sorted({character for document in documents for character in set(document)})


def _spelled(characters: Iterable[str]) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Return the tokens of characters, then their bytes and prefixes, and the merges that join them."""
    tokens = [character.encode() for character in characters]
    long = [token for token in tokens if len(token) > 1]
    inner = {token[:n] for token in long for n in range(1, len(token))} | {bytes([b]) for token in long for b in token}
    tokens += sorted(inner, key=lambda token: (len(token), token))
    merges = sorted({(t[:n], t[n : n + 1]) for t in long for n in range(1, len(t))}, key=lambda m: (len(m[0]), m))
    return tokens, merges
