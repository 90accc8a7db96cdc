"""Answers without an end, after the body or in a redirect: a download ends in time, and in little memory."""

from __future__ import annotations

import contextlib
import hashlib
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2core.errors import UserError
from gpt2core.sources.download import Retry, fetch
from gpt2core.sources.registry import Asset, File

BODY = b"A tale of two tales.\n" * 40
FILE = File("file.txt", (), hashlib.sha256(BODY).hexdigest(), len(BODY))
ASSET = Asset("asset", "corpus", "endless answers", "none", (FILE,))
FAST = Retry(tries=1, connect_timeout_s=1, read_timeout_s=1, deadline_s=3)
MAX_GROWTH_BYTES = 200 << 20


class Server:
    """Sends each client a start, and then the same bytes again and again until it hangs up."""

    def __init__(self) -> None:
        self.start, self.again, self.n_requests = b"", b"", 0
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            self.n_requests += 1
            connection.sendall(self.start)
            while self.again:
                connection.sendall(self.again)

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("GPT2CORE_MIRROR", server.url)
    yield server
    server.close()


def fetched(tmp_path: Path, retry: Retry = FAST) -> bytes:
    path = tmp_path / "out/file.txt"
    start_s = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        fetch(ASSET, FILE, path, retry)
    finally:
        assert time.monotonic() - start_s < 10
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH_BYTES
    return path.read_bytes()


@pytest.mark.timeout(60)
def test_trailers_without_an_end_are_not_read_forever(server: Server, tmp_path: Path) -> None:
    server.start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    server.again = b"X-Trailer: more\r\n" * 100
    assert fetched(tmp_path) == BODY  # all chunks were there, and their hash is right


@pytest.mark.timeout(60)
def test_the_body_of_a_redirect_is_not_read(server: Server, tmp_path: Path) -> None:
    server.start = b"HTTP/1.1 302 Found\r\nLocation: /next\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.again = b"10000\r\n" + bytes(65536) + b"\r\n"
    with pytest.raises(UserError, match="redirect"):
        fetched(tmp_path)
    assert server.n_requests > 5


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_a_redirect_to_another_kind_of_address_is_not_tried_again(server: Server, tmp_path: Path, address: str) -> None:
    server.start = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % address.encode()
    with pytest.raises(UserError, match="No connection adapters"):
        fetched(tmp_path, Retry(tries=5, first_wait_s=5))
    assert server.n_requests == 1


def test_a_wait_that_a_server_asks_for_ends_at_the_deadline(server: Server, tmp_path: Path) -> None:
    server.start = b"HTTP/1.1 429 Wait\r\nRetry-After: 9999999\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(UserError, match="429"):
        fetched(tmp_path, Retry(tries=2, deadline_s=1))


def test_the_name_of_no_encoding_may_have_capitals(server: Server, tmp_path: Path) -> None:
    server.start = b"HTTP/1.1 200 OK\r\nContent-Encoding: Identity\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    assert fetched(tmp_path) == BODY
