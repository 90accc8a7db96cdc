"""A TCP proxy before a server, which stops serving when a file appears: as a server that dies, fails or hangs."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

FAILURE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Proxy:
    """mode: what happens once the file `broken` is there: `dies` cuts connections, `fails` answers 500, `hangs` says
    nothing. served: requests let through; refused: those that were not."""

    def __init__(self, port: int, broken: Path, mode: str) -> None:
        self.target, self.broken, self.mode = port, broken, mode
        self.served = self.refused = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.done = threading.Event()
        self.open: list[socket.socket] = [self.listener]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        with contextlib.suppress(OSError), client:
            while data := client.recv(1 << 16):
                if self.broken.exists():
                    self.refused += 1
                    if self.mode == "hangs":
                        self.done.wait(60)
                    elif self.mode == "fails":
                        client.sendall(FAILURE)
                    return
                self.served += 1
                if server is None:
                    server = socket.create_connection(("127.0.0.1", self.target))
                    self.open.append(server)
                    threading.Thread(target=self._back, args=(server, client), daemon=True).start()
                server.sendall(data)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)

    def close(self) -> None:
        self.done.set()
        for opened in self.open:
            opened.close()


@contextlib.contextmanager
def proxy(port: int, broken: Path, mode: str) -> Iterator[Proxy]:
    before = Proxy(port, broken, mode)
    try:
        yield before
    finally:
        before.close()
