"""From the ids of one row to its text, while they come."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from gpt2core.errors import UserError


class TextStream:
    """Text as its tokens come: whole characters only, up to the end of text or a stop string.

    A character may be spread over tokens, and a stop string may begin and end inside them: `push` holds back the bytes
    of an unfinished character and whatever could still become a stop string. The pieces together are the decoded text,
    cut before the stop string that is complete first, wherever the tokens' edges lie. Bytes that are not UTF-8 become
    U+FFFD.

    Args:
        token_bytes: the bytes of a token.
        eos_id: the token at which the text ends; not part of it.
        stops: the strings before which the text ends.

    Raises:
        UserError: a stop string is empty.

    >>> tokens = [b"So sa", b"id H\\xc3", b"\\xa9lo\\xc3", b"\\xafse.\\nThe", b" end"]
    >>> text = TextStream(tokens.__getitem__, stops=[".\\n"])
    >>> [text.push(token_id) for token_id in range(5)]
    ['So sa', 'id H', 'élo', 'ïse', '']
    >>> text.finished, text.n_tokens
    (True, 4)
    """

    def __init__(self, token_bytes: Callable[[int], bytes], eos_id: int | None = None, stops: Sequence[str] = ()):
        if "" in stops:
            raise UserError("a stop string is empty: it would end every text at its start; leave it out")
        self.token_bytes, self.eos_id, self.stops = token_bytes, eos_id, tuple(stops)
        self.finished = False
        self.n_tokens = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All that was given out so far."""
        return "".join(self._pieces)

    def push(self, token_id: int) -> str:
        """Take the next token; give what is now certain to belong to the text. After the end: nothing."""
        if self.finished:
            return ""
        if token_id == self.eos_id:
            return self.close()
        self.n_tokens += 1
        return self._take(self._decoder.decode(self.token_bytes(token_id)))

    def close(self) -> str:
        """No token follows: give what was held back."""
        if self.finished:
            return ""
        rest = self._take(self._decoder.decode(b"", final=True))
        if self.finished:  # a stop string that ends in U+FFFD
            return rest
        self.finished = True
        return rest + self._give(len(self._held))

    def _take(self, characters: str) -> str:
        self._held += characters
        found = [(at + len(stop), at) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.finished = True
            return self._give(min(found)[1])  # the one that ends first; of those the longest
        return self._give(len(self._held) - self._could_become_a_stop())

    def _could_become_a_stop(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        return max(
            (n for stop in self.stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])),
            default=0,
        )

    def _give(self, n_characters: int) -> str:
        piece, self._held = self._held[:n_characters], self._held[n_characters:]
        self._pieces.append(piece)
        return piece
