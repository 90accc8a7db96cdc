"""A language model behind any OpenAI-compatible server: Ollama, vLLM, llama.cpp, `transformers serve`, OpenAI.

The key is read from OPENAI_API_KEY and goes nowhere but into the request's header: whatever could quote it, be it the
server's or the client's, is redacted before it is shown or kept.
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Any

import openai

from gpt2core.config.judge import Judge as JudgeParams
from gpt2core.errors import UserError
from gpt2core.evaluation.judges.language_model import NoReply
from gpt2core.evaluation.judges.replies import Messages


class OpenAIChat:
    """Asks `model` at judge.base_url, at temperature 0 and with the seed.

    judge.timeout_s bounds one request. The client retries refused connections, time-outs, 408, 409, 429 and 5xx up to
    judge.max_retries times, backing off exponentially (0.5 s to 8 s) or for as long as Retry-After says.
    judge.requests_per_minute counts retries, too.

    With judge.num_ctx the server is Ollama and is asked by its own /api/chat: the OpenAI way has no word for the
    context's size, and Ollama cuts what is longer than its default without saying so.
    """

    kind = "openai"

    def __init__(self, judge: JudgeParams, model: str, seed: int) -> None:
        self.model, self.concurrency = model, judge.concurrency
        self.settings: dict[str, Any] = {"temperature": 0, "seed": seed}
        if judge.num_ctx:
            self.settings["num_ctx"] = judge.num_ctx
        self._timeout_s, self._num_ctx = judge.timeout_s, judge.num_ctx
        self.where = f"judge.base_url {judge.base_url!r}, judge.model {model!r}"
        self.remedy = (
            "see to the server, choose another judge.model, or change judge.timeout_s, judge.max_retries, "
            "judge.concurrency, judge.requests_per_minute"
        )
        self._key = _key()
        pace = _Pace(judge.requests_per_minute)
        try:
            self._client = openai.OpenAI(
                base_url=judge.base_url,
                api_key=self._key or "none",
                timeout=judge.timeout_s,
                max_retries=judge.max_retries,
                http_client=openai.DefaultHttpxClient(event_hooks={"request": [pace.wait]}),
            )
        except Exception as error:  # the client documents no exception for an URL that cannot be parsed
            raise self._unusable(f"no usable URL ({error})", "give one such as http://127.0.0.1:11434/v1") from None

    def reply(self, messages: Messages) -> str:
        """The text of one chat completion. Raises NoReply, or UserError where every request would fail."""
        try:
            text = self._ask_ollama(messages) if self._num_ctx else self._ask(messages)
        except openai.APITimeoutError:
            raise NoReply(f"no reply within judge.timeout_s = {self._timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            raise self._unusable(
                f"no server answers there ({self._redact(error.__cause__ or error)})",
                "start it (Ollama: `ollama serve`) and run again, which asks only for what is missing, or mend "
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
                f"model {self.model!r} (Ollama: `ollama pull {self.model}`)",
            ) from None
        except openai.APIStatusError as error:
            raise NoReply(f"HTTP status {error.status_code} ({self._redact(error)})") from None
        except (openai.APIError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            # The client passes on whatever JSON or text a server sends.
            raise NoReply("the server's answer is no chat completion") from None
        return text.replace(self._key, "[key]") if self._key else text

    def _ask(self, messages: Messages) -> str:
        completion = self._client.chat.completions.create(
            model=self.model,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            seed=self.settings["seed"],
        )
        return _text(completion.choices[0].message.content)

    def _ask_ollama(self, messages: Messages) -> str:
        """Ollama's own API, by the same client, for its retries and errors."""
        root = re.sub(r"/v1/?$", "", str(self._client.base_url))
        body = {"model": self.model, "messages": list(messages), "stream": False, "options": self.settings}
        completion: Any = self._client.post(f"{root.rstrip('/')}/api/chat", body=body, cast_to=object)
        return _text(completion["message"]["content"])

    def _unusable(self, what: str, remedy: str) -> UserError:
        return UserError(f"{self.where}: {what}; {remedy}; or set judge.kind to chrf, which needs no server")

    def _redact(self, error: BaseException) -> str:
        """The first 200 characters of an error on one line, without the key."""
        text = " ".join(str(error).split())
        return (text.replace(self._key, "[key]") if self._key else text)[:200]


class _Pace:
    """Lets requests start so many seconds apart, whichever thread asks."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._next_s = 0.0
        self._lock = threading.Lock()

    def wait(self, request: object) -> None:
        """Called by the client before each request, also before one that it repeats."""
        with self._lock:
            now_s = time.monotonic()
            start_s = max(now_s, self._next_s)
            self._next_s = start_s + self._gap_s
        time.sleep(start_s - now_s)


def _text(content: Any) -> str:
    """What a message says; nothing (a refusal) is an empty text. Raises TypeError where it is no text."""
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError
    return content


def _key() -> str:
    """OPENAI_API_KEY without the white space around it; "" if there is none.

    Characters that a header cannot carry would be quoted, key and all, by the client; quotes and backslashes would be
    escaped in messages, where redaction would then miss them.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch(r"[!-~]*", key) or set(key) & set("\"'\\"):
        raise UserError(
            "OPENAI_API_KEY: holds a space, a line end, a quote or what is not ASCII; set it to the bare key"
        )
    return key
