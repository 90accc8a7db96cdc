"""The page, attacked: a hundred clients that send hostile bodies, and one that only wants its text."""

from __future__ import annotations

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from gpt2core.errors import UserError
from gpt2core.inference.text import MAX_STOP_CHARS, TextStream
from gpt2core.ui.serving import MAX_BODY_BYTES

N_CLIENTS = 100
PATHS = ("generate", "respond", "classify", "inspect")
DEEP = "[" * 200_000
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1", "0.5", "9" * 5000, "null", "true", '"1"', "[]", "{}", DEEP)


def bodies(model: str) -> list[bytes]:
    """Return bodies that are no requests, or barely."""
    name = json.dumps(model)
    keys = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop", "prompt")
    changed = [f'{{"model": {name}, "{key}": {number}}}' for key in keys for number in NUMBERS]
    return [
        b"", b"\0", b"\xff\xfe", b"null", b"[]", b"7", b'""', b"{" * 50_000, DEEP.encode(), b'{"a":' * 100_000,
        b'{"model": "../../../etc"}', b'{"model": "\\ud800"}', b'{"model": {"$ref": "#"}}', b"9" * 100_000,
        json.dumps({"model": model, "stop": "a" * 1_000_000}).encode(),
        json.dumps({"model": model, "prompt": "a" * 1_000_001}).encode(),
        json.dumps({"model": model, "texts": ["x"] * 1001}).encode(),
        json.dumps({"model": model, "texts": [7, None, {}]}).encode(),
        json.dumps({"model": model, "prompt": " " * 900_000, "max_new_tokens": 1}).encode(),
        json.dumps({"model": model, "prompt": "\ud800", "max_new_tokens": 1}).encode(),
        json.dumps({"model": model, "instruction": "a", "unknown": 1}).encode(),
        *map(str.encode, changed),
    ]  # fmt: skip


def ask(address: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a body and read the whole answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=120)
    try:
        connection.request("POST", f"/api/{path}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_a_hostile_body_is_the_clients_mistake(address: str, models_dir: Path, path: str) -> None:
    kind = {"classify": "classifier", "respond": "instruct"}.get(path, "pretrained")
    for body in bodies(str(models_dir / kind)):
        status, answer = ask(address, path, body)
        assert status in (200, 400, 413, 422), (status, body[:80], answer[:200])
        if status != 200:
            error = json.loads(answer)["error"]
            assert error.strip() and len(error) < 5000
            assert "Traceback" not in error


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_an_end_is_refused_early(address: str, chunked: bool) -> None:
    netloc = urlsplit(address)
    with socket.create_connection((netloc.hostname, netloc.port), timeout=60) as connection:
        head = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {1 << 40}"
        lines = ("POST /api/generate HTTP/1.1", f"Host: {netloc.netloc}", "Content-Type: application/json", head)
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        block = b"x" * (1 << 20)
        sent = 0
        try:
            while sent < 4 * MAX_BODY_BYTES:
                connection.sendall(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
                sent += len(block)
        except OSError:  # the server has closed the connection
            pass
        assert sent < 4 * MAX_BODY_BYTES
    assert requests.get(address, timeout=60).status_code == 200


@pytest.mark.slow
def test_a_hundred_hostile_clients_do_not_stop_the_page(address: str, models_dir: Path) -> None:
    model = str(models_dir / "pretrained")
    hostile = bodies(model)

    def attack(number: int) -> list[int]:
        return [ask(address, PATHS[(number + i) % 4], hostile[(7 * number + i) % len(hostile)])[0] for i in range(12)]

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        attacks = [pool.submit(attack, number) for number in range(N_CLIENTS)]
        time.sleep(1)
        status, answer = ask(address, "generate", json.dumps({"model": model, "max_new_tokens": 5}).encode())
        assert status == 200 and b'"tokens"' in answer
        statuses = [status for attack in attacks for status in attack.result(timeout=300)]
    assert len(statuses) == 12 * N_CLIENTS
    assert 500 not in statuses
    assert requests.get(address, timeout=60).status_code == 200


def test_a_long_stop_string_is_refused_and_a_long_enough_one_is_fast() -> None:
    with pytest.raises(UserError, match="a stop string has 1,001 characters; at most 1,000"):
        TextStream(lambda _: b"a", stops=["a" * (MAX_STOP_CHARS + 1)])
    text = TextStream(lambda _: b"ab", stops=["ab" * (MAX_STOP_CHARS // 2 - 1) + "ac"])
    for _ in range(2000):
        text.push(0)
    assert text.text + "ab" * (MAX_STOP_CHARS // 2 - 1) == "ab" * 2000
