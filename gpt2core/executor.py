"""Independent tasks on processes of this machine or on a Ray cluster; results come in the order of the tasks.

Both give the same bytes. Only values of JSON cross: arguments, results, and reports. Large data is in files that every
process can open: on Ray, in a shared folder or at an address. `GPT2CORE_RAY` chooses Ray; it is a fact of the machine,
and therefore no param.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gpt2core import environment, runtime
from gpt2core.errors import UserError, first_line
from gpt2core.log import log_to_stderr
from gpt2core.signals import restored_handlers

Result = TypeVar("Result")
OnReport = Callable[..., object]
TASKS_AHEAD = 4  # a process; more would only fill the memory
RETRIES = 3  # of a task whose process or node died
STARTS = 3  # tries to start a cluster of this machine: Ray waits 30 s for it, too little on a busy one
CONNECT_S = 10.0  # for the first connection to a cluster
SAVE_S = 60.0  # for stopped tasks to save a checkpoint
END_S = 2.0  # for other tasks to end after an error; Ray 2.60 may abort this process if a task is canceled as it ends
# For a cluster of this machine; Ray reads these while it loads. Listen on 127.0.0.1 only; wait for a busy machine.
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_gcs_server_port_wait_time_s": "120", "RAY_AUTH_MODE": "token"}
# What changes a result or its place; secrets such as AWS_* are each node's own, since Ray shows these values.
PASSED = ("DVC_ROOT", "GPT2CORE_DEVICE", "GPT2CORE_RESUME", "GPT2CORE_SAVE_INTERVAL_S", *environment.ENVIRONMENT)


def ignore(*values: Any) -> None:
    """Ignore a report."""


_on_report: OnReport = ignore


def report(*values: Any) -> None:
    """Send values to the caller of `map`: immediately from its own process, with the result from another one."""
    _on_report(*values)


class Executor(Protocol):
    """Processes that run tasks: `with open_executor() as executor: executor.map(…)`."""

    slots: int  # number of tasks that run at the same time

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_: object) -> None: ...

    def map(
        self, function: Callable[..., Result], tasks: Iterable[Sequence[Any]], on_report: OnReport = ignore
    ) -> Iterator[Result]:
        """Yield `function(*task)` for each task, in order; only a few tasks are drawn before their results.

        Args:
            function: of a module, which another process can import.
            tasks: arguments of each call, values of JSON.
            on_report: called with what a task reports, before its result.

        Raises:
            UserError: a process was killed, for Ray more than `RETRIES` times. Exceptions of the function itself are
                raised unchanged.
        """
        ...


def cluster_address() -> str | None:
    """Return the address of the Ray cluster that this process divides its work on; None without one."""
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"  # processes of torchrun have their own part of the work
    return os.environ.get("GPT2CORE_RAY") or None if is_alone else None


def open_executor(processes: int | None = None, *, with_model: bool = False) -> Executor:
    """Return the Ray cluster of `GPT2CORE_RAY`, or else processes of this machine.

    Args:
        processes: of this machine, 1 for this one; by default Ray or one per core.
        with_model: a task computes with a model. Locally it has this process, with all cores. Ray gives it a GPU, or
            the cores of the smallest node if there are no GPUs.
    """
    if processes is None and (address := cluster_address()):
        return RayCluster(address, with_model)
    if processes is None:
        processes = 1 if with_model else runtime.available_processes()
    return LocalProcesses(processes)


class LocalProcesses:
    """Processes of this machine, or with `processes` 1 this one.

    They are spawned, not forked: a fork copies the locks of threads that it does not copy. So the program must do
    nothing when it is only imported.
    """

    def __init__(self, processes: int = 1):
        self.slots = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> LocalProcesses:
        """Prepare the processes, which start with the first task.

        Raises:
            UserError: in a process that is only now being started, by a program that works while it is imported.
        """
        if self.slots > 1:
            if getattr(multiprocessing.current_process(), "_inheriting", False):
                raise UserError(
                    "this script starts its work also when a working process imports it: put its work under "
                    'if __name__ == "__main__":'
                )
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.slots, spawn, start_worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[..., Result], tasks: Iterable[Sequence[Any]], on_report: OnReport = ignore
    ) -> Iterator[Result]:
        """See `Executor`."""
        if self._pool is None:
            for task in tasks:
                with _reports_to(on_report):
                    result = function(*task)
                yield result
            return
        pending: deque[Future[tuple[Result, list[Any]]]] = deque()
        try:
            for task in tasks:
                pending.append(self._pool.submit(_call, function, task))
                if len(pending) >= TASKS_AHEAD * self.slots:
                    yield _delivered(pending.popleft().result(), on_report)
            while pending:
                yield _delivered(pending.popleft().result(), on_report)
        except BrokenProcessPool:
            # The pool ends the others by SIGTERM and waits for them; one that was starting may survive that.
            for process in multiprocessing.active_children():
                process.kill()
            raise UserError(
                "a worker process was killed, perhaps because memory ran out (its own message, if any, is above); "
                "run again with fewer processes: GPT2CORE_PROCESSES=1 (finished parts are kept)"
            ) from None


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with the parent even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _reports_to(on_report: OnReport) -> Iterator[None]:
    global _on_report
    outer, _on_report = _on_report, on_report
    try:
        yield
    finally:
        _on_report = outer


def _call(function: Callable[..., Result], task: Sequence[Any]) -> tuple[Result, list[Any]]:
    """Run a task in another process; return its result and reports."""
    reports: list[Any] = []
    with _reports_to(lambda *values: reports.append(values)):
        return function(*task), reports


def _delivered(returned: tuple[Result, list[Any]], on_report: OnReport) -> Result:
    result, reports = returned
    for values in reports:
        on_report(*values)
    return result


# --- Ray ---


class RayCluster:
    """The cluster at an address, or for `local` one of this machine, which listens on 127.0.0.1 only.

    A task whose process or node dies is run again. Nodes open the project at the path that it has here.
    """

    def __init__(self, address: str, with_model: bool = False):
        self.slots = 1
        self._address, self._with_model = address, with_model
        self._ray: Any = None
        self._is_own = False  # whether this object has connected, and so disconnects
        self._options: dict[str, Any] = {}

    def __enter__(self) -> RayCluster:
        """Connect. Raises UserError if Ray is not installed, or no cluster is at the address."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if self._address == "local":
            os.environ |= LOCAL
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once in a process
        try:
            import ray
        except ModuleNotFoundError:
            raise UserError(
                f"GPT2CORE_RAY={self._address}: Ray is not installed: pip install 'gpt2core[ray]', or unset it"
            ) from None
        self._ray = ray
        if not ray.is_initialized():
            self._connect()
        try:
            self._measure()
        except UserError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_own:
            self._ray.shutdown()

    def _connect(self) -> None:
        if re.fullmatch(r"[^/\s]+:\d+", self._address):  # Ray itself waits for minutes
            host, _, port = self._address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
            except OSError as error:
                raise self._cannot_join(error) from None
        new = {"num_cpus": runtime.available_processes(), "include_dashboard": False}
        options = new if self._address == "local" else {"address": self._address}
        for tries_left in reversed(range(STARTS)):
            try:
                with restored_handlers():  # Ray has its own for SIGTERM
                    self._ray.init(**options, logging_level=logging.ERROR)
                break
            except Exception as error:  # Ray raises many types, and none of its own
                self._ray.shutdown()
                if tries_left and self._address == "local":
                    continue
                raise self._cannot_join(error) from None
        self._is_own = True

    def _cannot_join(self, error: Exception) -> UserError:
        return UserError(
            f"GPT2CORE_RAY={self._address}: cannot join this Ray cluster ({first_line(error)}); start Ray on "
            "this machine too (ray start --address=HEAD:6379), or set GPT2CORE_RAY=local"
        )

    def _measure(self) -> None:
        """Find out what each task may take, and how many of them run at the same time."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            raise UserError(
                f"GPT2CORE_RAY={self._address}: no node of this cluster has CPUs; start one without --num-cpus=0"
            )
        name, amount = "CPU", 1.0
        if self._with_model:
            has_gpus = any(node.get("GPU") for node in nodes) and os.environ.get("GPT2CORE_DEVICE", "cuda") != "cpu"
            name, amount = ("GPU", 1.0) if has_gpus else ("CPU", min(node["CPU"] for node in nodes))
        self.slots = int(sum(node.get(name, 0) // amount for node in nodes))
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {name: os.environ[name] for name in PASSED if name in os.environ}
        # A task starts no tasks and no processes of its own.
        variables |= {"PYTHONPATH": os.pathsep.join(paths), "GPT2CORE_RAY": "", "GPT2CORE_PROCESSES": "1"}
        self._options = {
            "num_cpus": amount if name == "CPU" else 1,
            "num_gpus": amount if name == "GPU" else 0,
            "max_retries": RETRIES,
            "runtime_env": {"env_vars": variables},
        }

    def map(
        self, function: Callable[..., Result], tasks: Iterable[Sequence[Any]], on_report: OnReport = ignore
    ) -> Iterator[Result]:
        """See `Executor`."""
        run = self._ray.remote(**self._options)(_run)
        name = f"{function.__module__}:{function.__qualname__}"
        torch = sys.modules.get("torch") if self._with_model else None
        setup = [str(Path.cwd()), environment.prepared_mode() or "native", torch.get_num_threads() if torch else None]
        pending: deque[Any] = deque()
        try:
            for task in tasks:
                pending.append(run.remote(setup, name, list(task)))
                if len(pending) >= TASKS_AHEAD * self.slots:
                    yield _delivered(self._result(pending[0]), on_report)
                    pending.popleft()
            while pending:
                yield _delivered(self._result(pending[0]), on_report)
                pending.popleft()
        finally:  # after an error or Ctrl-C, trainings save first
            if pending:
                _, running = self._ray.wait(list(pending), num_returns=len(pending), timeout=END_S)
                for task in running:
                    self._ray.cancel(task)
                self._ray.wait(list(pending), num_returns=len(pending), timeout=SAVE_S)

    def _result(self, task: Any) -> Any:
        """Wait for the result and the reports of a task; raise the task's exception as if it had run here."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from (None if isinstance(error.cause, UserError) else error)
        except self._ray.exceptions.RayError as error:
            raise UserError(
                f"Ray: a process or node died {RETRIES + 1} times at the same task, perhaps because memory ran out "
                f"({type(error).__name__}: {first_line(error)}); run again (finished parts are kept)"
            ) from None


def _run(setup: list[Any], function: str, task: list[Any]) -> tuple[Any, list[Any]]:
    """Run a task in a process of Ray, prepared as the process that started it; return its result and reports."""
    folder, mode, threads = setup
    log_to_stderr()
    if environment.prepared_mode() is None:
        environment.prepare(mode)
    try:
        os.chdir(folder)
    except OSError:
        raise UserError(
            f"{os.uname().nodename}: {folder}: no such folder on this node of the Ray cluster; the project and its "
            "environment must be on a disk that all nodes have at the same path"
        ) from None
    if threads:
        import torch

        torch.set_num_threads(threads)
    module, _, name = function.partition(":")
    return _call(getattr(import_module(module), name), task)
