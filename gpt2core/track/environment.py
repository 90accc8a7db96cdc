"""The environment in which each stage made its present results: `metrics/environment.json`, tracked by Git.

It is no output of DVC's: two machines with the same results have the same dvc.lock. As the metrics beside it, it is
the last run's.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2core import config, files, runtime
from gpt2core.errors import UserError

RECORD = Path("metrics/environment.json")  # of the working directory, which an experiment has to itself
LOCK_TIMEOUT_S = 10.0


@contextlib.contextmanager
def recorded_environment(stage: str) -> Iterator[None]:
    """Warn of what differs from where the stage's last results were made; when it is through, note where that was.

    It never stops a stage. Of several ranks the first one speaks.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    here = runtime.environment()
    if differences := _differences(_read().get(stage), here):
        sys.stderr.write(
            f"warning: {stage} last ran elsewhere ({RECORD}): {'; '.join(differences)}. "
            "Results may differ in the last bits\n"
        )
    yield
    try:
        with files.lock(config.project_root() / ".locks" / "environment.lock", LOCK_TIMEOUT_S):
            record = _read()
            if record.get(stage) != here:
                files.write_json(RECORD, dict(sorted((record | {stage: here}).items())))
    except OSError as error:
        sys.stderr.write(f"warning: {RECORD} was not written ({error})\n")


def _differences(then: Any, here: dict[str, str]) -> list[str]:
    """
    >>> _differences({"python": "3.11.9", "threads": "2"}, {"python": "3.11.9", "threads": "8"})
    ['threads 2, here 8']
    """
    if not isinstance(then, dict):
        return []
    names = dict.fromkeys([*then, *here])
    return [f"{n} {then.get(n, 'none')}, here {here.get(n, 'none')}" for n in names if then.get(n) != here.get(n)]


def _read() -> dict[str, Any]:
    """What is recorded; nothing if the file is missing or damaged."""
    try:
        record = files.read_json(RECORD)
    except UserError:
        return {}
    return record if isinstance(record, dict) else {}
