"""Leases on an S3 server: exclusion by the server's conditional writes, takeover by the server's clock."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from gpt2core.errors import UserError
from gpt2core.training import lease as lease_module
from gpt2core.training.lease import LEASE_S, Lease
from gpt2core.training.object_store import ObjectStore, StoreError


class Clock:
    """Time passes only while somebody sleeps, or if the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.on_sleep: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.on_sleep()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this machine. That of the store does not move, so that no test depends on the time that it takes."""
    modified_s = ObjectStore.modified_s
    monkeypatch.setattr(ObjectStore, "modified_s", lambda self, name: 0 * modified_s(self, name) + 1e9)
    return Clock()


def lease(url: str, owner: str, clock: Clock) -> Lease:
    """A lease whose thread does not renew it: `renew` is called by the test."""
    return Lease(ObjectStore.open(url), owner, "training", clock, clock.sleep)


def test_a_live_lease_excludes_others_until_it_is_released(s3: str, clock: Clock) -> None:
    first, second = lease(s3, "a", clock), lease(s3, "b", clock)
    assert first.acquire(wait=False)
    assert not second.acquire(wait=False)
    first.renew()
    first.renew()
    assert len(ObjectStore.open(s3).entries()) == 1, "earlier numbers and probes are left"
    clock.on_sleep = first.release
    assert second.acquire(wait=True)
    second.renew()
    second.release()


def test_of_two_writers_one_stops(s3: str, clock: Clock) -> None:
    """The first is suspended for so long that the second takes its lease over."""
    first, second = lease(s3, "a", clock), lease(s3, "b", clock)
    assert first.acquire(wait=False)
    before_s = clock.now_s
    assert second.acquire(wait=True)
    assert LEASE_S < clock.now_s - before_s <= LEASE_S + 2 * lease_module.POLL_S
    second.renew()
    for _ in range(2):
        with pytest.raises(UserError, match="training: another process has taken over this training"):
            first.renew()
    assert first.is_lost and not second.is_lost
    first.release()  # changes nothing
    second.renew()
    second.release()


def test_a_lease_that_was_not_taken_over_can_be_renewed_late(
    s3: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lease(s3, "a", clock)
    with monkeypatch.context() as patch:
        patch.setattr(lease_module, "LEASE_S", -10.0)  # it expires when it is written
        assert first.acquire(wait=False)
    first.renew()
    assert not lease(s3, "b", clock).acquire(wait=False)
    first.release()


def test_the_lease_of_a_process_of_the_same_owner_that_ended_needs_no_wait(s3: str, clock: Clock) -> None:
    assert lease(s3, "a", clock).acquire(wait=False)
    again = lease(s3, "a", clock)
    assert again.acquire(wait=False)
    again.release()


def test_many_that_want_a_lease_get_it_one_at_a_time(s3: str, clock: Clock) -> None:
    """All wait for the same expired lease, from several threads."""
    assert lease(s3, "dead", clock).acquire(wait=False)
    leases = [lease(s3, f"owner {n}", clock) for n in range(4)]
    store_time_s = leases[0]._store_time_s() + LEASE_S + 20
    owned: list[bool] = []
    start = threading.Barrier(len(leases))

    def take(each: Lease) -> None:
        create = each._create

        def together(number: int) -> bool:
            start.wait()  # until all have read that it has expired: what one creates then is not expired
            return create(number)

        each._create = together  # type: ignore[method-assign]
        owned.append(each._take(store_time_s))

    threads = [threading.Thread(target=take, args=(each,)) for each in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert owned.count(True) == 1


def test_one_that_creates_an_old_number_after_a_pause_has_nothing(
    s3: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has seen the lease expired, and stopped for a while; meanwhile others took it over and renewed it."""
    dead, second, slow = (lease(s3, owner, clock) for owner in ("dead", "b", "slow"))
    assert dead.acquire(wait=False)
    create = slow._create

    def after_a_pause(number: int) -> bool:
        assert second.acquire(wait=True)
        second.renew()
        return create(number)

    monkeypatch.setattr(slow, "_create", after_a_pause)
    assert not slow._take(slow._store_time_s() + LEASE_S + 20)
    second.renew()
    second.release()


def test_an_answer_that_was_lost_is_no_lost_lease(s3: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library tries again after the store has created the object."""
    first = lease(s3, "a", clock)
    assert first.acquire(wait=False)
    create = ObjectStore.create

    def twice(self: ObjectStore, name: str, content: bytes) -> None:
        create(self, name, content)
        create(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "create", twice)
        first.renew()
    first.renew()
    first.release()


def test_a_store_that_replaces_objects_is_refused(s3: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(self: ObjectStore, name: str, content: bytes) -> None:
        self._fs.pipe_file(f"{self._url}/{name}", content)

    monkeypatch.setattr(ObjectStore, "create", replace)
    with pytest.raises(UserError, match="this store replaces an object even if it is asked not to"):
        lease(s3, "a", clock).acquire(wait=False)


def test_a_thread_renews_the_lease_also_after_an_error(s3: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.01)
    renewed = threading.Event()
    first = lease(s3, "a", clock)
    renew, n_calls = first.renew, 0

    def fails_first() -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            raise StoreError("no network")
        renew()
        renewed.set()

    monkeypatch.setattr(first, "renew", fails_first)
    assert first.acquire(wait=False)
    assert renewed.wait(60)
    first.release()
    (last,) = ObjectStore.open(s3).entries()
    assert int(last) >= 3, "one of the acquisition, one of the thread, and one of the release"
