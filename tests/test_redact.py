"""Secrets in URLs do not reach messages."""

from __future__ import annotations

import doctest

import pytest

from gpt2core import redact
from gpt2core.redact import redacted


def test_the_examples() -> None:
    assert doctest.testmod(redact).attempted > 0
    assert doctest.testmod(redact).failed == 0


@pytest.mark.parametrize(
    "text",
    [
        "http://user:planted@127.0.0.1:1",
        "postgresql+psycopg2://user:planted@db/mlflow",
        "http://user:pa@planted@host/",
        "'http://user:planted@host/a b'",
        "see http://a.org and http://user:planted@host, then http://b.org?token=planted",
        "HTTPSConnectionPool(url='https://host/p?X-Amz-Credential=a&X-Amz-Signature=planted')",
        "HTTP://USER:planted@HOST",
        "https://planted@github.com/me/project.git",
        "https://host/a?k=planted&planted",
    ],
)
def test_a_secret_is_hidden(text: str) -> None:
    assert "planted" not in redacted(text).removesuffix("&planted")
    assert "***" in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no address",
        "https://example.org/a.txt#sha256=00",
        "me@example.org",
        "a=b & c=d",
        "sqlite:////home/me/mlflow.db",
    ],
)
def test_what_has_no_secret_stays(text: str) -> None:
    assert redacted(text) == text
