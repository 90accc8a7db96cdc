"""Gradients of each micro-batch in two halves, for `numerics: portable`: the second half in a second process.

Portable steps are small, and two threads of one process would spend most of the time waiting for Python's global lock.
Therefore the process forks. Both processes share the parameters. Each computes the gradients of half of the rows on one
thread, and the first process adds them. A process that cannot fork computes one half after the other, with the same
bytes. A sum of two gradients does not depend on their order; a sum of three does.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize

import torch
from torch import Tensor, nn

from gpt2core import numerics, runtime
from gpt2core.errors import UserError
from gpt2core.training.batches import Batch

MIN_ELEMENTS = 256  # ids in a micro-batch; with fewer, adding the gradients takes longer than computing them

Backward = Callable[[Batch, int], Tensor]  # batch, number of targets in the step -> loss; adds the batch's gradients


def halves(parameters: Sequence[nn.Parameter], backward: Backward) -> Halves:
    """Return a `SecondProcess` if there is a core for it and PyTorch can fork, and otherwise a `Halves`.

    With an accelerator, even an unused one, PyTorch's autograd starts threads and then refuses to work after a fork.
    """
    can_fork = runtime.available_processes() > 1 and not torch.accelerator.is_available()
    return (SecondProcess if can_fork else Halves)(parameters, backward)


class Halves:
    """Compute the gradients of each micro-batch in halves, one after the other; `backward` adds those of a batch."""

    def __init__(self, parameters: Sequence[nn.Parameter], backward: Backward):
        self._parameters, self._backward = parameters, backward

    def add_gradients(self, batch: Batch, n_targets: int) -> Tensor:
        """Do what `backward` does, in halves."""
        halves = batch.halves()
        if len(halves) == 1 or batch.inputs[0].numel() < MIN_ELEMENTS:
            return self._backward(batch, n_targets)
        first, second = halves
        earlier = self._take_gradients()
        loss = self._add_both(first, second, n_targets)
        self._add(earlier)
        return loss

    def close(self) -> None:
        """Release what the halves need."""

    def _add_both(self, first: Batch, second: Batch, n_targets: int) -> Tensor:
        """Add the gradients of both halves to parameters that have none; return the sum of their losses."""
        with numerics.one_thread():
            loss = self._backward(first, n_targets)
            gradients = self._take_gradients()
            loss = loss + self._backward(second, n_targets)
        self._add(gradients)
        return loss

    def _take_gradients(self) -> list[Tensor | None]:
        """Return the gradient of each parameter, and leave none."""
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return gradients

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients to those of the parameters; either may be missing."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)


class SecondProcess(Halves):
    """Compute the second half of each micro-batch in a fork of this process, at the same time and with the same bytes.

    The memory of the parameters becomes shared. `backward` must depend on nothing else that changes later.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], backward: Backward):
        super().__init__(parameters, backward)
        for parameter in parameters:
            parameter.data = _shared_like(parameter.data).copy_(parameter.data)
        self._gradients = [_shared_like(parameter.data) for parameter in parameters]  # written by the second process
        self._pipe, theirs = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=self._serve, args=(theirs, os.getpid()), name="halves", daemon=True)
        # Python 3.12 and later warn about a fork of several threads. They hold no lock that backward needs, and
        # `one_thread` keeps BLAS from using its second thread meanwhile.
        with numerics.one_thread(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*use of fork\\(\\) may lead to deadlocks", DeprecationWarning)
            self._process.start()
        # At exit, before multiprocessing waits for it: it ignores the signal that multiprocessing would send.
        self._end = Finalize(self, _kill, (self._process,), exitpriority=10)
        theirs.close()

    def close(self) -> None:
        """End the second process. The parameters stay in shared memory."""
        self._end()
        self._pipe.close()

    def _add_both(self, first: Batch, second: Batch, n_targets: int) -> Tensor:
        # Pickled between this process and its own fork only; `send` would put each tensor into a file of /dev/shm.
        with self._report_killed():
            self._pipe.send_bytes(pickle.dumps((_owned(second), n_targets)))
        with numerics.one_thread():
            loss = self._backward(first, n_targets)
        with self._report_killed():
            reply = self._pipe.recv()
        if isinstance(reply, BaseException):
            raise reply
        second_loss, has_gradient = reply
        self._add([shared if has else None for shared, has in zip(self._gradients, has_gradient, strict=True)])
        return loss + second_loss

    @contextlib.contextmanager
    def _report_killed(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            raise UserError(
                f"the process that computes half of each batch ended (exit code {self._process.exitcode}; -9 often "
                "means that the memory was full: lower the batch size). Run again: it continues from the last saved "
                "state"
            ) from None

    def _serve(self, pipe: Connection, parent: int) -> None:
        """Answer each (batch, targets) with its loss and which parameters have a gradient.

        It ends with the first process.
        """
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
                    pipe.send(self._gradients_of(batch, n_targets))
                except Exception as error:
                    pipe.send(_picklable(error))

    def _gradients_of(self, batch: Batch, n_targets: int) -> tuple[float, list[bool]]:
        """Write the gradients of a batch to the shared memory; return its loss, and which parameters have one."""
        self._take_gradients()
        loss = self._backward(batch, n_targets).item()
        gradients = self._take_gradients()
        for gradient, shared in zip(gradients, self._gradients, strict=True):
            if gradient is not None:
                shared.copy_(gradient)
        return loss, [gradient is not None for gradient in gradients]


def _owned(batch: Batch) -> Batch:
    """Return a batch whose tensors own their memory: a view would be pickled with all that it is a view of."""
    return replace(batch, inputs=tuple(tensor.clone() for tensor in batch.inputs), targets=batch.targets.clone())


def _picklable(error: Exception) -> Exception:
    """Return an error that the first process can read, with the traceback of this one as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"In the process that computes half of each batch:\n{trace}")
    return copy


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def _shared_like(tensor: Tensor) -> Tensor:
    """Return a new tensor in memory that a forked process shares. Unlike /dev/shm it is not limited in a container."""
    memory = mmap.mmap(-1, max(tensor.nbytes, 1))
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when `parent` ends, however it ends."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)
