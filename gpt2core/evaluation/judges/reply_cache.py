"""Kept replies of language models as judges: nothing is requested twice, and an interrupted run continues.

One JSON Lines file per judge, to which lines are only added. A line has the messages, the reply, and a key: a hash of
judge, model, settings, version of the prompts, and messages. Failed requests are not kept. To request the replies
again, delete the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2core import files

Messages = Sequence[Mapping[str, str]]  # role, content


class ReplyCache:
    """The replies of one judge. Threads may share the object, and processes the file.

    Args:
        folder: of the files; created with the first reply.
        judge: values that change a reply, except for the messages: kind, model, and settings. JSON values.
    """

    def __init__(self, folder: Path, judge: Mapping[str, Any]) -> None:
        self._judge = dict(judge)
        name = f"{judge['judge']}-{judge['model']}"
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80]
        self.path = folder / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.jsonl"
        self._lock = threading.Lock()
        self._known = dict(self._read())

    def get(self, messages: Messages) -> str | None:
        """Return the reply to these messages, or None."""
        return self._known.get(self._key(messages))

    def add(self, messages: Messages, reply: str) -> None:
        """Keep a reply. It is on the disk when this returns."""
        key = self._key(messages)
        record = {"key": key, **self._judge, "messages": list(messages), "reply": reply}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with self._lock:
            self._known[key] = reply
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered and in append mode: each line is one write, after the lines of other processes.
            with self.path.open("ab", buffering=0) as file:
                if self._is_torn():
                    line = b"\n" + line
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.path))
                os.fsync(file.fileno())

    def _key(self, messages: Messages) -> str:
        identity = json.dumps({**self._judge, "messages": list(messages)}, sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()

    def _is_torn(self) -> bool:
        """Return whether the last line has no end, because its writer was killed."""
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def _read(self) -> dict[str, str]:
        """Return the replies on the disk by key. Incomplete or unknown lines are ignored."""
        known: dict[str, str] = {}
        if not self.path.exists():
            return known
        with files.open_regular(self.path) as lines:
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                    record = json.loads(line)
                    if isinstance(record["reply"], str):
                        known[record["key"]] = record["reply"]
        return known
