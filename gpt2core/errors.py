"""The one exception for everything a user can put right."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LISTED = 5
MAX_NAME_CHARS = 60


class UserError(Exception):
    """A mistake in the input, the parameters or the surroundings, that the person at the keyboard can mend.

    The message says what is wrong, where (file, row, key), what is allowed and what to do. Stages and the command
    line print it as it stands, without a traceback, and exit with 1; anything else that is raised is a bug of ours.
    """


def listed(names: Sequence[str]) -> str:
    """Return the first five names of a file for a message, none longer than 60 characters.

    >>> listed(["a", "b"]), listed([])
    ('a, b', 'none')
    """
    more = len(names) - MAX_LISTED
    shown = ", ".join(f"{name:.{MAX_NAME_CHARS}}" for name in names[:MAX_LISTED])
    return shown + (f" and {more:,} more" if more > 0 else "") if names else "none"


def first_line(error: BaseException) -> str:
    """Return the first 400 characters of the first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0][:400]
