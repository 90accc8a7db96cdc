"""Ctrl-C and SIGTERM. Imports nothing heavy: a stage spends seconds on imports, and is interrupted there as well."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a stage as Ctrl-C does: open files are closed."""


def exit_on_signals() -> None:
    """End the process with one line on Ctrl-C and SIGTERM. For the time of the imports, when nothing is open yet."""
    _handle(_exit, _exit)


def raise_on_signals() -> None:
    """Raise KeyboardInterrupt on Ctrl-C and Terminated on SIGTERM, so that open files are closed."""
    _handle(signal.default_int_handler, _terminate)


@contextlib.contextmanager
def restored_handlers() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM after a library has set its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def interrupted(error: KeyboardInterrupt) -> NoReturn:
    """Exit as a shell expects it after Ctrl-C or SIGTERM."""
    sys.exit(_report(isinstance(error, Terminated)))


def _handle(interrupt: signal._HANDLER, terminate: signal._HANDLER) -> None:
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
            signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(_report(number == signal.SIGTERM))


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _report(is_terminated: bool) -> int:
    """Write the line, of processes that torchrun started together in the first one only; return the exit code."""
    message, code = ("terminated", 143) if is_terminated else ("interrupted", 130)
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"\n{message}\n")
        sys.stderr.flush()
    return code
