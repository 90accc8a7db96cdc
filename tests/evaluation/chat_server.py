"""A real HTTP server on the loopback that speaks /v1/chat/completions, and Ollama's /api/chat; for tests to spoil."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    text: str | None = None
    status: int = 200
    delay_s: float = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # instead of a chat completion


@dataclass
class Request:
    path: str
    headers: Message  # by name, whatever the case
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def turns(self) -> int:
        return len(self.body["messages"])


class Server:
    """Answers each request with `answer(request)`; keeps the requests, and how many were under way at once."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Reply] = lambda request: Reply("50")
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = Request(self.path, self.headers, body)
                with lock:
                    outer.requests.append(request)
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                    reply = outer.answer(request)
                time.sleep(reply.delay_s)
                with lock:
                    outer.at_once -= 1
                message = {"role": "assistant", "content": reply.text}
                completion: dict[str, Any] = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                }
                if self.path == "/api/chat":  # Ollama's own
                    completion = {"model": "m", "created_at": "2024-01-01T00:00:00Z", "message": message, "done": True}
                content = json.dumps(completion).encode() if reply.body is None else reply.body
                headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **reply.headers}
                try:
                    self.send_response(reply.status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # the client gave up waiting

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop_listening(self) -> None:
        """Further connections are refused; what is under way goes on."""
        self._server.socket.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
