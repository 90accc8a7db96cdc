"""A lock on an object store, which has no locks: a lease, an object that its owner renews and others wait for.

The objects of a lease have the numbers 1, 2, 3, … as names. Whoever created the one with the highest number owns the
lease. To renew it, its owner creates the next number; to take over a lease that was not renewed in time, another
process does the same. The store creates an object only if none has its name (on S3, `If-None-Match: *`), so that one
of them fails. Exclusion therefore needs no clock.

Only the moment of a takeover needs a time. It is the store's: a process creates an object, and compares its time of
modification with that of the lease. The clocks of machines may differ.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Protocol

from gpt2core.errors import UserError

LEASE_S = 180.0  # without a renewal, until others may take it over
RENEW_S = 60.0
POLL_S = 5.0


class Objects(Protocol):
    """What a lease needs of an object store; all errors are OSError."""

    def create(self, name: str, content: bytes) -> None:
        """Create an object. Raises FileExistsError if there is one of this name."""

    def read(self, name: str) -> bytes:
        """Return an object. Raises FileNotFoundError if it is missing."""

    def modified_s(self, name: str) -> float:
        """Return when an object was written by the store's clock. Raises FileNotFoundError if it is missing."""

    def entries(self) -> Mapping[str, object]:
        """Return all objects by name, those just created included."""

    def remove(self, name: str) -> None:
        """Remove an object, unless it is missing."""


class Lease:
    """A lease in the name of `owner`. A lease of the same owner is one of a process that has ended.

    Args:
        objects: an otherwise empty folder of the store.
        owner: no two processes that run at the same time have the same.
        where: the name of what is reserved, for messages.
        clock: seconds since any moment; it measures how long this process has waited.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        objects: Objects,
        owner: str,
        where: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.is_lost = False
        self._objects, self._owner, self._where, self._clock, self._sleep = objects, owner, where, clock, sleep
        self._number = 0
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self, *, wait: bool) -> bool:
        """Create the lease or take it over; return whether this process owns it, which without `wait` may be false.

        Raises:
            UserError: the store does not refuse to replace an object.
        """
        offset_s = self._store_time_s() - self._clock()
        while not self._take(offset_s + self._clock()):
            if not wait:
                return False
            self._sleep(POLL_S)
        self._thread.start()
        return True

    def renew(self) -> None:
        """Renew the lease. Raises UserError if another process has taken it over."""
        with self._mutex:
            self.is_lost = self.is_lost or not self._create(self._number + 1)
        if self.is_lost:
            raise UserError(
                f"{self._where}: another process has taken over this training, because this one had not renewed its "
                f"lease for {LEASE_S:.0f} s; stopped before it writes there again. The other process continues"
            )

    def stop(self) -> None:
        """Stop renewing."""
        self._ended.set()
        self._thread.join()

    def release(self) -> None:
        """Stop renewing, and let others have the lease immediately."""
        self.stop()
        if not self.is_lost:
            self._create(self._number + 1, is_released=True)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            with contextlib.suppress(OSError):  # tries again, and so does the next checkpoint, which reports it
                try:
                    self.renew()
                except UserError:  # the training stops at its next pause
                    return

    def _store_time_s(self) -> float:
        """Return the store's time, after a check that it does not replace an object."""
        probe = f"probe-{uuid.uuid4().hex}"
        self._objects.create(probe, b"")
        try:
            self._objects.create(probe, b"")
        except FileExistsError:
            return self._objects.modified_s(probe)
        finally:
            self._objects.remove(probe)
        raise UserError(
            f"{self._where}: this store replaces an object even if it is asked not to (S3: If-None-Match), so two "
            "processes could write to the same training; use another store, or a folder"
        )

    def _take(self, store_time_s: float) -> bool:
        """Take the lease if it is free; return whether this process owns it."""
        last = max(self._numbers(), default=0)
        try:
            if last:
                holder = dict(json.loads(self._objects.read(str(last))))
                age_s = store_time_s - self._objects.modified_s(str(last))
                if not (holder["released"] or holder["owner"] == self._owner or age_s > holder["seconds"]):
                    return False
        except FileNotFoundError:  # it has just been renewed
            return False
        return self._create(last + 1)

    def _create(self, number: int, *, is_released: bool = False) -> bool:
        """Create the object `number`; return whether it is the last one, which owns the lease."""
        record = {"owner": self._owner, "seconds": LEASE_S, "released": is_released}
        content = json.dumps(record).encode()
        try:
            self._objects.create(str(number), content)
        except FileExistsError:
            if self._objects.read(str(number)) != content:
                return False
            # It is ours: the answer to the first try was lost, and the library tried again.
        numbers = self._numbers()
        if max(numbers) != number:  # created after a long pause, in which other processes have removed this number
            self._objects.remove(str(number))
            return False
        self._number = number
        for older in numbers:
            if older < number:
                self._objects.remove(str(older))
        return True

    def _numbers(self) -> list[int]:
        return [int(name) for name in self._objects.entries() if name.isdecimal()]
