"""The replies of language models as judges, kept: a rerun asks for nothing twice, and one that was stopped goes on.

A file a judge, JSON lines, only ever added to. A line holds what was asked, the reply, and the key that stands for
judge, model, settings, version of the prompts and the item with all that was said about it. Requests that failed are
not kept. To ask anew, delete the file.
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

Messages = Sequence[Mapping[str, str]]  # role, content


class Replies:
    """The replies of one judge. Threads may share it, and processes the file.

    Args:
        folder: holds the files; made when there is something to keep.
        judge: what decides a reply besides the messages: its kind, model and settings, JSON values.
    """

    def __init__(self, folder: Path, judge: Mapping[str, Any]) -> None:
        self._judge = dict(judge)
        name = f"{judge['judge']}-{judge['model']}"
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80]
        self.path = folder / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.jsonl"
        self._lock = threading.Lock()
        self._known = dict(self._read())

    def get(self, messages: Messages) -> str | None:
        """The reply to these messages, if it is known."""
        return self._known.get(self._key(messages))

    def add(self, messages: Messages, reply: str) -> None:
        """Keep a reply; it is on the disk when this returns."""
        key = self._key(messages)
        record = {"key": key, **self._judge, "messages": list(messages), "reply": reply}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with self._lock:
            self._known[key] = reply
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered and for appending: each line is one write, after whatever another process has written.
            with self.path.open("ab", buffering=0) as file:
                if self._is_torn():
                    line = b"\n" + line
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.path))
                os.fsync(file.fileno())

    def _key(self, messages: Messages) -> str:
        asked = json.dumps({**self._judge, "messages": list(messages)}, sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def _is_torn(self) -> bool:
        """Whether the last line has no end: who wrote it was killed."""
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def _read(self) -> dict[str, str]:
        """The replies on the disk. A line that is torn or not ours counts for nothing: its reply is asked for again."""
        known: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    if isinstance(record["reply"], str):
                        known[record["key"]] = record["reply"]
        return known
