"""The logger `gpt2core`: messages for the person who watches, on standard error.

    logger.info("dtype: bfloat16")
    logger.warning("the disk is full")  # shown as "warning: the disk is full"

In a program that uses gpt2core as a library, messages go where that program's `logging` sends them. The commands and
stages of this project call `log_to_stderr`.
"""

from __future__ import annotations

import logging
import os
import re
import sys

from gpt2core.redact import redacted

logger = logging.getLogger("gpt2core")
# Everything that moves the cursor, colors, or reorders text (Unicode's bidirectional controls), but not \n and \t.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class _AboveProgressBars(logging.Handler):
    """Write each message as a line above any tqdm bar, so that neither breaks the other."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if int(os.environ.get("RANK", "0")):  # of the processes that torchrun started, only the first one reports
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(prefix + shown(record.getMessage()), file=sys.stderr)


def shown(message: str) -> str:
    """Return a message as a terminal may show it: secrets in URLs are hidden, and control characters are escaped.

    What a server or a file said may be part of the message, and a terminal obeys control characters.
    """
    return escaped(redacted(message))


def escaped(text: str) -> str:
    """Return a text with its control characters escaped, apart from line ends and tabs."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def log_to_stderr() -> None:
    """Show messages on standard error, of the processes that torchrun started only those of rank 0."""
    if not logger.handlers:
        logger.addHandler(_AboveProgressBars())
        logger.setLevel(logging.INFO)
        logger.propagate = False
