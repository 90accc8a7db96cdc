"""Text of a stream of token ids."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from gpt2core.errors import UserError

MAX_STOP_CHARS = 1000  # each token is compared with every prefix of a stop string


class TextStream:
    r"""Text of a token stream in whole characters, up to the end of text or a stop string.

    A character may consist of several tokens, and a stop string may start and end inside tokens: `push` holds back the
    bytes of an incomplete character and characters that may be the start of a stop string. The pieces together are the
    decoded text before the stop string that is complete first. Bytes that are not UTF-8 become U+FFFD.

    Args:
        token_bytes: returns the bytes of a token.
        eos_id: the token that ends the text; not part of it.
        stops: strings before which the text ends.

    Raises:
        UserError: a stop string is empty, or longer than 1,000 characters.

    >>> tokens = [b"So sa", b"id H\xc3", b"\xa9lo\xc3", b"\xafse.\nThe", b" end"]
    >>> text = TextStream(tokens.__getitem__, stops=[".\n"])
    >>> [text.push(token_id) for token_id in range(5)]
    ['So sa', 'id H', 'élo', 'ïse', '']
    >>> text.finished, text.n_tokens
    (True, 4)
    """

    def __init__(self, token_bytes: Callable[[int], bytes], eos_id: int | None = None, stops: Sequence[str] = ()):
        if "" in stops:
            raise UserError("a stop string is empty: it would end every text at its start; leave it out")
        if longest := max((len(stop) for stop in stops if len(stop) > MAX_STOP_CHARS), default=0):
            raise UserError(f"a stop string has {longest:,} characters; at most {MAX_STOP_CHARS:,} are allowed")
        self.token_bytes, self.eos_id, self.stops = token_bytes, eos_id, tuple(stops)
        self.finished = False
        self.n_tokens = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    def push(self, token_id: int) -> str:
        """Add a token, and return the characters that are now certain to be in the text; after the end, none."""
        if self.finished:
            return ""
        if token_id == self.eos_id:
            return self.close()
        self.n_tokens += 1
        return self._take(self._decoder.decode(self.token_bytes(token_id)))

    def close(self) -> str:
        """End the text, and return the characters that were held back."""
        if self.finished:
            return ""
        rest = self._take(self._decoder.decode(b"", final=True))
        if self.finished:  # a stop string that ends in U+FFFD
            return rest
        self.finished = True
        return rest + self._give(len(self._held))

    def _take(self, characters: str) -> str:
        self._held += characters
        ends = [(start + len(stop), start) for stop in self.stops if (start := self._held.find(stop)) >= 0]
        if ends:
            self.finished = True
            return self._give(min(ends)[1])  # the one that ends first; of equals the longest
        return self._give(len(self._held) - self._could_become_a_stop())

    def _could_become_a_stop(self) -> int:
        """Return the length of the longest suffix of the held text that is a prefix of a stop string."""
        return max(
            (
                n
                for stop in self.stops
                for n in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )

    def _give(self, n_characters: int) -> str:
        piece, self._held = self._held[:n_characters], self._held[n_characters:]
        self._pieces.append(piece)
        return piece
