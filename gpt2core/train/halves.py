"""A second process that computes half of each micro-batch, for `numerics: portable`.

Portable steps are small, and two threads of one process would spend most of the time waiting for Python's global lock.
So the process forks: both processes share the parameters, each computes the gradients of half of the rows on one
thread, and the first process adds them. A sum of two gradients does not depend on their order; a sum of three does.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from gpt2core import numerics
from gpt2core.errors import UserError
from gpt2core.train.batches import Batch

MIN_ELEMENTS = 256  # ids of a micro-batch; below, adding the gradients takes longer than computing them

Backward = Callable[[Batch, int], Tensor]  # adds a batch's gradients, in a step of so many targets; gives its loss


class SecondProcess:
    """A fork of this process that computes half of each batch.

    Args:
        parameters: what learns. Their memory becomes shared between the processes.
        backward: what both processes compute. It must not depend on anything but `parameters` that changes later.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], backward: Backward):
        self._parameters, self._backward = parameters, backward
        for parameter in parameters:
            parameter.data = _shared_like(parameter.data).copy_(parameter.data)
        self._gradients = [_shared_like(parameter.data) for parameter in parameters]  # written by the second process
        self._pipe, theirs = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=self._serve, args=(theirs, os.getpid()), name="halves", daemon=True)
        with (
            numerics.one_thread(),
            warnings.catch_warnings(),
        ):  # Python 3.12 on; the other threads hold nothing that a half needs
            warnings.filterwarnings("ignore", ".*use of fork\\(\\) may lead to deadlocks", DeprecationWarning)
            self._process.start()
        theirs.close()

    def add_gradients(self, batch: Batch, n_targets: int) -> Tensor:
        """Do what `backward` does, in halves.

        Raises:
            UserError: the second process was killed.
        """
        halves = batch.halves()
        if len(halves) == 1 or batch.inputs[0].numel() < MIN_ELEMENTS:
            return self._backward(batch, n_targets)
        earlier = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        with self._report_killed():
            self._pipe.send_bytes(pickle.dumps((halves[1], n_targets)))
        with numerics.one_thread():
            loss = self._backward(halves[0], n_targets)
        with self._report_killed():
            reply = self._pipe.recv()
        if isinstance(reply, BaseException):
            raise reply
        second_loss, has_gradient = reply
        _add(self._parameters, [g if has else None for g, has in zip(self._gradients, has_gradient, strict=True)])
        _add(self._parameters, earlier)
        return loss + second_loss

    def close(self) -> None:
        """End the second process. The parameters stay in shared memory."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    @contextlib.contextmanager
    def _report_killed(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            raise UserError(
                f"the process that computes half of each batch ended (exit code {self._process.exitcode}); is the "
                "memory full? Lower the batch size, and run again: it continues from the last saved state"
            ) from None

    def _serve(self, pipe: Connection, parent: int) -> None:
        """Answer each (batch, targets) with its loss and which parameters have a gradient, until the first process
        ends."""
        for number in (signal.SIGINT, signal.SIGTERM):  # the first process saves its state and then ends this one
            signal.signal(number, signal.SIG_IGN)
        _end_with(parent)
        self._pipe.close()
        torch.set_num_threads(1)  # OpenMP's threads are not in a fork, which would wait for them
        with numerics.one_thread():
            while True:
                try:
                    batch, n_targets = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    return
                try:
                    for parameter in self._parameters:
                        parameter.grad = None
                    loss = self._backward(batch, n_targets).item()
                    for parameter, shared in zip(self._parameters, self._gradients, strict=True):
                        if parameter.grad is not None:
                            shared.copy_(parameter.grad)
                    pipe.send((loss, [parameter.grad is not None for parameter in self._parameters]))
                except Exception as error:
                    pipe.send(error)


def _add(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to those of the parameters; either may be missing."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient.clone()
        else:
            parameter.grad.add_(gradient)


def _shared_like(tensor: Tensor) -> Tensor:
    """A new tensor in memory that a forked process shares. Unlike /dev/shm it is not limited in a container."""
    memory = mmap.mmap(-1, max(tensor.nbytes, 1))
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when `parent` ends, however it ends."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)
