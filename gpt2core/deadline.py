"""A limit on the time of a call that has none of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


def within(seconds: float, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return what the function returns, or raise what it raises.

    HTTP clients limit the time between two bytes, so a server that sends a byte now and then holds them for days. The
    call runs in a daemon thread, which may outlive the time but cannot keep the process alive.

    Raises:
        TimeoutError: the call has not ended after `seconds`.
    """
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((function(*args, **options), None))
        except BaseException as error:  # it belongs to the caller's thread
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result
