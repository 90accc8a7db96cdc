"""The one exception for everything a user can put right."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the input, the parameters or the surroundings, that the person at the keyboard can mend.

    The message says what is wrong, where (file, row, key), what is allowed and what to do. Stages and the command
    line print it as it stands, without a traceback, and exit with 1; anything else that is raised is a bug of ours.
    """


def first_line(error: BaseException) -> str:
    """Return the first 400 characters of the first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0][:400]
