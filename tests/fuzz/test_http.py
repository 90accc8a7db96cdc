"""Answers of servers, many changed ones each: the right file or score, or one error, in bounded time."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2core.errors import UserError
from gpt2core.evaluation.judges.language_model import NoReply
from gpt2core.evaluation.judges.openai import OpenAIChat
from gpt2core.sources.download import Retry, fetch
from gpt2core.sources.registry import Asset, File
from tests.evaluation.test_openai_judge import params
from tests.fuzz.mutations import FUZZ, hostile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
MAX_S = 20.0  # a try of one second, with room for a busy machine
BODY = b"A tale of two tales.\n" * 40
FILE = (
    b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "v1"\r\nAccept-Ranges: bytes\r\nConnection: close\r\n\r\n'
    % len(BODY)
) + BODY
COMPLETION = b'{"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": "85"}}]}'
CHAT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(
    COMPLETION
)
PAST_FAILURES = (
    b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx", b"HTTP/1.1 301 M\r\nLocation: file:///etc\r\n\r\n",
    b"HTTP/1.1 206 P\r\nContent-Range: bytes 5-2/1\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9" + b"9" * 30 + b"\r\n\r\n",
    b"HTTP/1.1 429 T\r\nRetry-After: 1e999\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
)  # fmt: skip


class Server:
    """Answers each connection with the same bytes, whatever was asked, and closes it."""

    def __init__(self) -> None:
        self.answer = b""
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.settimeout(5)
                    connection.recv(1 << 16)
                    connection.sendall(self.answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
                except OSError:
                    pass

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    server = Server()
    monkeypatch.setenv("GPT2CORE_MIRROR", server.url)
    yield server
    server.close()


def fuzz(server: Server, content: bytes, ask: Callable[[], None]) -> None:
    def check(changed: bytes) -> None:
        server.answer = changed
        start_s = time.monotonic()
        ask()
        assert time.monotonic() - start_s < MAX_S

    for changed in (content, *PAST_FAILURES):
        check(changed)
    head = content.partition(b"\r\n\r\n")[0]
    headers = hostile(head).map(lambda changed: changed + content[len(head) :])
    FUZZ(given(st.one_of(headers, hostile(content)))(check))()


def test_downloads(server: Server, tmp_path: Path) -> None:
    file = File("file.bin", (), hashlib.sha256(BODY).hexdigest(), len(BODY))
    asset = Asset("fuzzed", "corpus", "changed answers", "none", (file,))
    retry = Retry(tries=1, connect_timeout_s=1, read_timeout_s=1, deadline_s=2)
    out = tmp_path / "out/file.bin"
    n_fetched = 0

    def ask() -> None:
        nonlocal n_fetched
        out.unlink(missing_ok=True)
        try:
            fetch(asset, file, out, retry)
        except UserError as error:
            assert not out.exists()
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 3000
            return
        assert out.read_bytes() == BODY
        n_fetched += 1

    fuzz(server, FILE, ask)
    assert n_fetched > 0.1 * FUZZ.max_examples


def test_chat_completions(server: Server) -> None:
    chat = OpenAIChat(params(f"{server.url}/v1", timeout_s=1.0, max_retries=0), "judge-model", seed=1)
    n_replies = 0

    def ask() -> None:
        nonlocal n_replies
        try:
            assert isinstance(chat.reply([{"role": "user", "content": "Score it."}]), str)
            n_replies += 1
        except (NoReply, UserError) as error:
            assert len(str(error).splitlines()) <= 1 and len(str(error)) < 3000

    fuzz(server, CHAT + COMPLETION, ask)
    assert n_replies > 20
