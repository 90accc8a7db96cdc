"""The exception for all errors that a user can fix, and helpers for its messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_LISTED = 5
MAX_NAME_CHARS = 60
MAX_LINE_CHARS = 1000  # of a message: a value from a file can be long
# Pydantic's names of a type's alternatives: `str`, `list[…]`, `literal[…]`, and classes.
ALTERNATIVE = re.compile(r"(str|int|float|bool|none)$|(list|dict|literal)\[|_|[A-Z]\w*$")


class UserError(Exception):
    """A mistake in the input, the parameters, or the environment that the user can fix.

    The message says what the error is, where it is (file, row, key), what is allowed, and what to do. Stages and the
    command line print the message alone, without a traceback, and exit with 1. Any other exception is a bug.

    The message keeps both ends of a line longer than 1,000 characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_both_ends, message.split("\n"))))


def _both_ends(line: str) -> str:
    """Return a line of at most 1,000 characters.

    >>> _both_ends("a" * 2000)[475:505], len(_both_ends("a" * 10**6))
    ('aaaaa … 1,040 characters … aaa', 984)
    """
    if len(line) <= MAX_LINE_CHARS:
        return line
    end = MAX_LINE_CHARS // 2 - 20
    return f"{line[:end]} … {len(line) - 2 * end:,} characters … {line[-end:]}"


def listed(names: Sequence[str]) -> str:
    """Return the first five names of a file for a message, none longer than 60 characters.

    >>> listed(["a", "b"]), listed([])
    ('a, b', 'none')
    """
    more = len(names) - MAX_LISTED
    shown = ", ".join(f"{name:.{MAX_NAME_CHARS}}" for name in names[:MAX_LISTED])
    return shown + (f" and {more:,} more" if more > 0 else "") if names else "none"


def schema_problem(error: ValidationError) -> str:
    """Return where and why a value does not fit pydantic's schema: `key: reason, found value`.

    If a type has alternatives, the message is of the one that fits furthest. Their names are not part of the key.
    """
    first = max(error.errors(include_url=False), key=lambda item: len(item["loc"]))
    key = ".".join(str(part) for part in first["loc"] if not ALTERNATIVE.match(str(part))) or "the content"
    if first["type"] == "model_type":  # its message has the name of a class
        return f"{key}: must be an object of keys and values, found {first['input']!r:.40}"
    found = "" if first["type"] in ("missing", "extra_forbidden") else f", found {first['input']!r:.40}"
    return f"{key}: {first['msg']}{found}"


def first_line(error: BaseException) -> str:
    """Return the first 400 characters of the first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0][:400]
