"""The language-model judge against a real HTTP server on the loopback that speaks /v1/chat/completions."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gpt2core import config
from gpt2core.errors import UserError
from gpt2core.evaluate.judge import evaluate_responses
from gpt2core.evaluate.judges import Item, make_judge
from gpt2core.evaluate.judges.openai import parse_score

KEY = "sk-loopback-0123456789"


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

    def __init__(self) -> None:
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
                completion = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                }
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

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def params(base_url: str, **changes: Any) -> config.Judge:
    values: dict[str, Any] = dict(
        kind="openai", base_url=base_url, model="judge-model", timeout_s=5.0, max_retries=2, concurrency=2,
        min_coverage=0.5, bootstrap_samples=20, max_items=None,
    )  # fmt: skip
    return config.Judge(**{**values, **changes})


def items(*responses: str) -> list[Item]:
    return [Item("Name a colour.", "of the sky", "blue as can be", response) for response in responses]


def score(server: Server, *responses: str, seed: int = 7, **changes: Any) -> list[float | None]:
    return make_judge(params(server.base_url, **changes), seed).score(items(*responses))


def failure(server: Server, *responses: str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        score(server, *responses, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("85", 85), (" 85\n", 85), ("Score: 85", 85), ("score: 85/100", 85), ("85 / 100", 85), ("0", 0), ("100", 100),
        ("101", None), ("-5", None), ("8.5", None), ("85%", None), ("085", None), ("", None), ("85 85", None),
        ("I give it 85", None), ("85. The answer is right", None), ("85/10", None), ("٨٥", None), ("²", None),
    ],
)  # fmt: skip
def test_only_a_whole_reply_that_is_a_score_counts(reply: str, expected: int | None) -> None:
    assert parse_score(reply) == expected


def test_scores_come_in_the_order_of_the_items(server: Server) -> None:
    def answer(request: Request) -> Reply:
        number = int(request.prompt.split("<response>\n")[1].split("\n")[0])
        return Reply(str(number), delay_s=0.1 if number < 3 else 0)  # the first ones come back last

    server.answer = answer
    assert score(server, *map(str, range(8)), concurrency=4) == [float(number) for number in range(8)]
    assert server.most_at_once > 1


def test_concurrency_is_a_limit(server: Server) -> None:
    server.answer = lambda request: Reply("1", delay_s=0.03)
    score(server, *"abcdefgh", concurrency=3)
    assert server.most_at_once <= 3


def test_the_request_says_what_the_params_say(server: Server) -> None:
    score(server, "green {braces} stay", seed=123)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert {key: request.body[key] for key in ("model", "temperature", "seed")} == {
        "model": "judge-model", "temperature": 0, "seed": 123,
    }  # fmt: skip
    for part in ("Name a colour.", "of the sky", "blue as can be", "green {braces} stay"):
        assert part in request.prompt
    assert request.headers["Authorization"] == f"Bearer {KEY}"


def test_a_server_without_keys_gets_a_placeholder(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert score(server, "a") == [50.0]
    assert server.requests[0].headers["Authorization"] == "Bearer none"


def test_nonsense_is_asked_for_once_more(server: Server) -> None:
    server.answer = lambda request: Reply("It is quite good!" if request.turns == 1 else "Score: 64")
    assert score(server, "a") == [64.0]
    first, second = server.requests
    assert second.body["messages"][:2] == [
        first.body["messages"][0],
        {"role": "assistant", "content": "It is quite good!"},
    ]
    assert second.body["seed"] == first.body["seed"]


def test_nonsense_always_is_counted_and_not_dropped(server: Server) -> None:
    server.answer = lambda request: Reply("no idea" if "<response>\nbad" in request.prompt else "80")
    assert score(server, "good", "bad", "good", min_coverage=0.6) == [80.0, None, 80.0]
    assert len(server.requests) == 4  # one repair, not more


def test_too_little_coverage_is_an_error_with_counts_and_stops_asking(server: Server) -> None:
    server.answer = lambda request: Reply("no idea" if "<response>\nbad" in request.prompt else "80")
    message = failure(server, "good", "bad", "bad", *["good"] * 37, min_coverage=0.96, concurrency=1)
    for part in ("40 responses", "1 were scored", "2 could not", "0.96", "2 × the reply is not a score", "judge-model"):
        assert part in message
    assert len(server.requests) < 10


def test_no_score_at_all_is_an_error_even_without_min_coverage(server: Server) -> None:
    server.answer = lambda request: Reply(None)  # a refusal: no content
    assert "2 could not" in failure(server, "a", "b", min_coverage=0.0)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, status: int) -> None:
    def answer(request: Request) -> Reply:
        busy = len(server.requests) <= 2
        return Reply("70", status=status if busy else 200, headers={"retry-after-ms": "1"} if busy else {})

    server.answer = answer
    assert score(server, "a") == [70.0]
    assert len(server.requests) == 3


def test_retries_end_and_the_item_is_counted(server: Server) -> None:
    server.answer = lambda request: Reply(
        status=500 if "<response>\nbad" in request.prompt else 200,
        text="90",
        headers={"retry-after-ms": "1"},
    )
    assert score(server, "bad", "good", max_retries=2) == [None, 90.0]
    assert len(server.requests) == 1 + 3
    message = failure(server, "bad", "bad", max_retries=1)
    assert "HTTP status 500" in message
    assert server.base_url in message


def test_a_closed_port_names_the_url_and_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        base_url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        make_judge(params(base_url, max_retries=0), seed=0).score(items(*"abcdefgh"))
    assert time.monotonic() - start < 5
    for part in (base_url, "no server answers", "ollama serve", "judge.base_url", "chrf"):
        assert part in str(caught.value)


@pytest.mark.parametrize("base_url", ["localhost/v1", "http://127.0.0.1:port/v1"])
def test_what_is_no_url_is_an_error_too(base_url: str) -> None:
    with pytest.raises(UserError) as caught:
        make_judge(params(base_url, max_retries=0), seed=0).score(items("a"))
    assert base_url in str(caught.value)


def test_a_slow_server_is_given_up_after_the_timeout(server: Server) -> None:
    slow = "<response>\nslow"
    server.answer = lambda request: Reply("60", delay_s=1 if slow in request.prompt else 0)
    assert score(server, "slow", "fast", timeout_s=0.3, max_retries=0) == [None, 60.0]
    message = failure(server, "slow", "slow", timeout_s=0.3, max_retries=0)
    assert "2 × no reply within judge.timeout_s = 0.3 s" in message or "1 × no reply within" in message


@pytest.mark.parametrize(
    ("status", "said"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "ollama pull judge-model")]
)
def test_a_refused_key_or_model_ends_it_at_once(server: Server, status: int, said: str) -> None:
    server.answer = lambda request: Reply(status=status, body=b'{"error": {"message": "no"}}')
    message = failure(server, *"abcdefghij", concurrency=1)
    assert said in message
    assert server.base_url in message
    assert len(server.requests) <= 3


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/html", b"<html>"), ("application/json", b"{}"), ("application/json", b"[1]"), ("application/json", b"{")],
)
def test_an_answer_that_is_no_chat_completion_is_counted(server: Server, content_type: str, body: bytes) -> None:
    server.answer = lambda request: Reply(body=body, headers={"Content-Type": content_type})
    assert "no chat completion" in failure(server, "a")


def test_the_key_is_in_the_header_and_nowhere_else(
    server: Server, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    entry = {"instruction": "i", "input": "", "output": "o", "response": "r", "base_response": "b"}
    report = evaluate_responses([entry], [entry], make_judge(params(server.base_url), seed=0), 10, seed=0)
    assert report.metrics()["judge"] == "openai:judge-model"
    assert len(server.requests) == 4  # the model's answer, the base's, the echo, the nearest
    shown = [json.dumps(report.metrics()), report.to_csv(), json.dumps([request.body for request in server.requests])]
    for status in (401, 404, 422, 500):  # servers that quote the key back
        body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}).encode()
        server.answer = lambda request, status=status, body=body: Reply(status=status, body=body)
        shown.append(failure(server, "a", max_retries=0))
        assert "[key]" in shown[-1]
    output = capfd.readouterr()
    assert all(KEY not in text for text in [*shown, output.out, output.err, caplog.text])
    assert all(request.headers["Authorization"] == f"Bearer {KEY}" for request in server.requests)


@pytest.mark.parametrize("mangled", [f"{KEY[:8]}\n{KEY[8:]}", f"{KEY} x", f"'{KEY}'", f"{KEY}é"])
def test_a_mangled_key_is_refused_unseen(server: Server, monkeypatch: pytest.MonkeyPatch, mangled: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", mangled)
    message = failure(server, "a")
    assert message.startswith("OPENAI_API_KEY:")
    assert KEY[8:] not in message
    assert not server.requests


def test_white_space_around_the_key_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    score(server, "a")
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
