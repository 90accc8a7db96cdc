"""A language model on an OpenAI-compatible server: Ollama, vLLM, llama.cpp, `transformers serve`, OpenAI.

The key is read from OPENAI_API_KEY and sent only in the header of requests. It is redacted in replies and messages of
server and client before they are shown or kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import threading
import time
from typing import Any

import httpx2
import openai

from gpt2core.config.judge import Judge as JudgeParams
from gpt2core.deadline import within
from gpt2core.errors import UserError
from gpt2core.evaluation.judges.language_model import NoReply
from gpt2core.evaluation.judges.reply_cache import Messages
from gpt2core.redact import redacted, without_secret

MAX_ANSWER_BYTES = 1 << 20
MAX_REDIRECTS = 5
BROKEN_ANSWERS = (httpx2.RemoteProtocolError, httpx2.ReadError)  # of a server that was reached


class OpenAIChat:
    """A model on the server at judge.base_url, asked at temperature 0 and with the seed.

    judge.timeout_s limits one request. The client retries refused connections, timeouts, and the status codes 408, 409,
    429, and 5xx up to judge.max_retries times, with exponential backoff (0.5 s to 8 s) or as Retry-After says.
    judge.requests_per_minute includes retries.

    With judge.num_ctx, requests go to Ollama's own /api/chat: the OpenAI API has no parameter for the context size, and
    Ollama truncates longer texts silently.
    """

    kind = "openai"

    def __init__(self, judge: JudgeParams, model: str, seed: int) -> None:
        self.model, self.concurrency = model, judge.concurrency
        self.settings: dict[str, Any] = {"temperature": 0, "seed": seed, "max_tokens": judge.max_tokens}
        if judge.num_ctx:
            self.settings["num_ctx"] = judge.num_ctx
        self._timeout_s, self._num_ctx = judge.timeout_s, judge.num_ctx
        self.where = f"judge.base_url {judge.base_url!r}, judge.model {model!r}"
        self.remedy = (
            "see to the server, choose another judge.model, or change judge.timeout_s, judge.max_retries, "
            "judge.concurrency, judge.requests_per_minute"
        )
        self._key = _key()
        try:
            self._client = openai.OpenAI(
                base_url=judge.base_url,
                api_key=self._key or "none",
                timeout=judge.timeout_s,
                max_retries=judge.max_retries,
                default_headers={"Accept-Encoding": "identity"},
                http_client=_BoundedClient(judge.timeout_s, _Pace(judge.requests_per_minute)),
            )
        except Exception as error:  # the client documents no exception for an URL that cannot be parsed
            raise self._unusable(f"no usable URL ({error})", "give one such as http://127.0.0.1:11434/v1") from None

    def reply(self, messages: Messages) -> str:
        """Return the text of one chat completion.

        Raises:
            NoReply: this request failed.
            UserError: every request would fail.
        """
        try:
            text = self._ask_ollama(messages) if self._num_ctx else self._ask(messages)
        except openai.APITimeoutError:
            raise NoReply(f"no reply within judge.timeout_s = {self._timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, BROKEN_ANSWERS):
                raise NoReply(
                    f"the server's answer is cut short or no HTTP ({self._redact(error.__cause__)})"
                ) from None
            raise self._unusable(
                f"no server answers there ({self._redact(error.__cause__ or error)})",
                "start it (Ollama: `ollama serve`) and run again, which asks only for what is missing, or fix "
                "judge.base_url in params.yaml",
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._unusable(
                f"the server refuses the key ({self._redact(error)})", "set the environment variable OPENAI_API_KEY"
            ) from None
        except openai.NotFoundError as error:
            raise self._unusable(
                f"the server knows no such page or model ({self._redact(error)})",
                f"check that judge.base_url ends as the server wants it (mostly /v1) and that it has the "
                f"model {self.model!r} (Ollama: `ollama pull {shlex.quote(self.model)}`)",
            ) from None
        except openai.APIStatusError as error:
            if 300 <= error.status_code < 400:
                target = self._redact(redacted(error.response.headers.get("Location", "nowhere")))
                raise self._unusable(
                    f"the server redirects to {target}, which is not followed: it would get the key and the texts",
                    "set judge.base_url to that address if it is right",
                ) from None
            raise NoReply(f"HTTP status {error.status_code} ({self._redact(error)})") from None
        except (openai.APIError, AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
            # The client passes on whatever JSON or text a server sends.
            raise NoReply("the server's answer is no chat completion") from None
        return without_secret(text, self._key, "[key]")

    def _ask(self, messages: Messages) -> str:
        completion = self._client.chat.completions.create(
            model=self.model,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            seed=self.settings["seed"],
            max_tokens=self.settings["max_tokens"],
        )
        return _text(completion.choices[0].message.content)

    def _ask_ollama(self, messages: Messages) -> str:
        """Ask through Ollama's own API, with the same client for its retries and errors."""
        root = re.sub(r"/v1/?$", "", str(self._client.base_url))
        options = {"num_predict" if key == "max_tokens" else key: value for key, value in self.settings.items()}
        body = {"model": self.model, "messages": list(messages), "stream": False, "options": options}
        completion: Any = self._client.post(f"{root.rstrip('/')}/api/chat", body=body, cast_to=object)
        return _text(completion["message"]["content"])

    def _unusable(self, what: str, remedy: str) -> UserError:
        return UserError(f"{self.where}: {what}; {remedy}; or set judge.kind to chrf, which needs no server")

    def _redact(self, error: object) -> str:
        """Return the first 200 characters of what a server said, on one line and without the key."""
        text = " ".join(str(error).split())
        return without_secret(text, self._key, "[key]")[:200]


class _Pace:
    """A rate limit: requests of all threads start at regular intervals."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._next_s = 0.0
        self._lock = threading.Lock()

    def wait(self, request: object) -> None:
        """Wait before a request. The client calls this, also before a retry."""
        with self._lock:
            now_s = time.monotonic()
            start_s = max(now_s, self._next_s)
            self._next_s = start_s + self._gap_s
        time.sleep(start_s - now_s)


class _BoundedClient(openai.DefaultHttpxClient):
    """A client that receives a whole answer within a time and a size; other clients limit the time per byte only.

    It stays on the server that was named. A custom transport would do the same, but not use the environment's proxies.
    """

    def __init__(self, timeout_s: float, pace: _Pace) -> None:
        super().__init__()
        self._timeout_s, self._pace = timeout_s, pace

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Return a complete answer. The time of all redirects together is limited, without the waits of the pace."""
        left_s = self._timeout_s
        try:
            for _ in range(1 + MAX_REDIRECTS):
                self._pace.wait(request)
                start_s = time.monotonic()
                response, target = within(max(left_s, 0), self._receive, request, start_s + left_s, options)
                if target is None:
                    return response
                left_s -= time.monotonic() - start_s
                request = target
        except TimeoutError:
            raise httpx2.ReadTimeout("the answer is not complete in time", request=request) from None
        raise NoReply(f"the server redirects more than {MAX_REDIRECTS} times")

    def _receive(
        self, request: httpx2.Request, end_s: float, options: dict[str, Any]
    ) -> tuple[httpx2.Response, httpx2.Request | None]:
        """Return an answer, and the request to send next if it redirects within the server."""
        response = super().send(request, **{**options, "stream": True, "follow_redirects": False})
        content = bytearray()
        with contextlib.closing(response):
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise NoReply(f"the answer has more than {MAX_ANSWER_BYTES:,} bytes")
                if time.monotonic() > end_s:  # nobody waits any more; the thread would read on for days
                    raise TimeoutError
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise NoReply("the answer is compressed")
        target = response.next_request
        if target is not None and target.url.origin != request.url.origin:
            target = None  # the caller reports the redirect
        whole = httpx2.Response(
            response.status_code, headers=response.headers, content=bytes(content), request=response.request
        )
        return whole, target


def _text(content: Any) -> str:
    """Return the text of a message; a refusal has none, which is an empty text. Raises TypeError for other types."""
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError
    return content


def _key() -> str:
    """Return OPENAI_API_KEY without surrounding white space, or an empty text.

    Raises:
        UserError: the key has characters that a header cannot contain (the client would print it in its message), or
            that messages escape (redaction would miss it).
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch(r"[!-~]*", key) or set(key) & set("\"'\\"):
        raise UserError(
            "OPENAI_API_KEY: holds a space, a line end, a quote or what is not ASCII; set it to the bare key"
        )
    return key
