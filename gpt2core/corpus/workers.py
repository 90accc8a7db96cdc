"""Work distributed to processes: tasks in, results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from gpt2core.errors import UserError

Result = TypeVar("Result")
TASKS_AHEAD = 4  # a process; more would only fill the memory


class Workers:
    """Several processes, or with `processes` 1 this one: `with Workers(2) as workers: workers.map(…)`.

    They are spawned, not forked: a fork copies the locks of threads that it does not copy. So a mapped function must be
    a module's, and the program must do nothing when it is only imported.
    """

    def __init__(self, processes: int = 1):
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        """Prepare the processes, which start with the first task.

        Raises:
            UserError: in a process that is only now being started, by a program that works while it is imported.
        """
        if self.processes > 1:
            if getattr(multiprocessing.current_process(), "_inheriting", False):
                raise UserError(
                    "this script starts its work also when a working process imports it: put its work under "
                    'if __name__ == "__main__":'
                )
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, spawn, _start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Yield `function(*task)` for each task, in order; only a few tasks are drawn before their results.

        Raises:
            UserError: a process was killed from outside. Exceptions of the function itself are raised unchanged.
        """
        if self._pool is None:
            yield from (function(*task) for task in tasks)
            return
        pending: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                pending.append(self._pool.submit(function, *task))
                if len(pending) >= TASKS_AHEAD * self.processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            # The pool ends the others by SIGTERM and waits for them; one that was starting may survive that.
            for process in multiprocessing.active_children():
                process.kill()
            raise UserError(
                "a worker process was killed, perhaps because memory ran out (its own message, if any, is above); "
                "run again with fewer processes: GPT2CORE_PROCESSES=1 (finished parts are kept)"
            ) from None


def _start() -> None:
    """Leave Ctrl-C to the parent, and end with the parent even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
