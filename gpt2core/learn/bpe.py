"""Byte-pair encoding by hand, step by step (Sennrich et al. 2016; on bytes: Radford et al. 2019, section 2.2).

Training starts from single bytes and repeatedly merges the most frequent pair of neighbors. Encoding replays the merges
in the order in which they were learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import regex

Word = tuple[bytes, ...]  # a word by its current symbols: (b"lo", b"w")
Pair = tuple[bytes, bytes]

# GPT-2 cuts a text into these before it merges, so that no token spans two words. A space belongs to the word after it.
WORD_PATTERN = regex.compile(
    r"""  's|'t|'re|'ve|'m|'ll|'d    # the ends of English short forms
        | [ ]?\p{L}+                 # letters
        | [ ]?\p{N}+                 # digits
        | [ ]?[^\s\p{L}\p{N}]+       # marks
        | \s+(?!\S) | \s+            # white space, but for the last one before a word""",
    regex.VERBOSE,
)
# GPT-2 numbers the printable bytes first.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = [bytes([byte]) for byte in PRINTABLE + [byte for byte in range(256) if byte not in PRINTABLE]]


class Step(NamedTuple):
    """One round: the merged pair, how often it occurred, and the words after the merge."""

    pair: Pair
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used here
    words: Counter[Word]


def spell(text: str) -> Counter[Word]:
    """Return the words of a text as single bytes, and how often each occurs.

    >>> spell("low low")
    Counter({(b'l', b'o', b'w'): 1, (b' ', b'l', b'o', b'w'): 1})
    """
    words = (word.encode() for word in WORD_PATTERN.findall(text))
    return Counter(tuple(bytes([byte]) for byte in word) for word in words)


def count_pairs(words: Counter[Word]) -> Counter[Pair]:
    """Count the pairs of adjacent symbols."""
    counts: Counter[Pair] = Counter()
    for word, times in words.items():
        for pair in zip(word, word[1:], strict=False):
            counts[pair] += times
    return counts


def merge_pair(word: Word, pair: Pair) -> Word:
    """Merge each occurrence of the pair, from the left.

    >>> merge_pair((b"a", b"b", b"a", b"b"), (b"a", b"b"))
    (b'ab', b'ab')
    """
    merged: list[bytes] = []
    position = 0
    while position < len(word):
        if word[position : position + 2] == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return tuple(merged)


def bpe_steps(text: str, n_merges: int) -> Iterator[Step]:
    """Learn merges one by one; of equally frequent pairs the one with the lower ids. Ends early without pairs."""
    words, ids = spell(text), {symbol: number for number, symbol in enumerate(BYTES)}
    for _ in range(n_merges):
        counts = count_pairs(words)
        if not counts:
            return
        pair = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        after: Counter[Word] = Counter()
        for word, times in words.items():
            after[merge_pair(word, pair)] += times
        words = after
        ids[pair[0] + pair[1]] = len(ids)
        yield Step(pair, counts[pair], words)


def bpe_encode(text: str, merges: Sequence[Pair]) -> list[bytes]:
    """Return the tokens of a text: in each word, merge the pair that was learned first, until none is left.

    >>> bpe_encode("lower", [(b"l", b"o"), (b"e", b"r"), (b"lo", b"w")])
    [b'low', b'er']
    """
    rank = {pair: number for number, pair in enumerate(merges)}
    tokens: list[bytes] = []
    for piece in WORD_PATTERN.findall(text):
        word: Word = tuple(bytes([byte]) for byte in piece.encode())
        while known := [pair for pair in zip(word, word[1:], strict=False) if pair in rank]:
            word = merge_pair(word, min(known, key=rank.__getitem__))
        tokens.extend(word)
    return tokens
