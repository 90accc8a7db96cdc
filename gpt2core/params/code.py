"""`code.yaml` of a project outside of the repository: a hash per stage of the code that decides its outputs.

In a clone the code is part of the project, and `dvc.yaml` lists its files. A project of `gpt2core new` runs the
installed package, whose place differs between machines, so DVC reads these hashes as params. A stage checks its own.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from gpt2core import __version__, files, stage_code
from gpt2core.config import read_yaml
from gpt2core.errors import UserError

FILE = "code.yaml"
HEADER = f"""\
# A hash of each stage's code in the installed gpt2core. DVC runs a stage again if its hash has changed.
# `gpt2core params` writes this file, after you installed another version.
gpt2core: "{__version__}"
"""


def render() -> str:
    """Return the text of `code.yaml` for the installed package. Quoted: a hash may be all digits."""
    return HEADER + "".join(f'{stage}: "{stage_hash(stage)}"\n' for stage in stage_code.stages())


def stage_hash(stage: str) -> str:
    """Return a hash of names and content of a stage's code; the same for a clone and a wheel."""
    paths = stage_code.stage_files(stage)
    rows = sorted((path.as_posix().removeprefix("gpt2core/"), files.sha256(stage_code.ROOT / path)) for path in paths)
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:32]


def outdated(path: Path, stages: Iterable[str] | None = None) -> list[str]:
    """Return the stages, of some or all, whose code differs from the file's hash; none if there is no file."""
    if not path.exists():
        return []
    content = read_yaml(path)
    recorded = content if isinstance(content, dict) else {}
    return [stage for stage in stages or stage_code.stages() if recorded.get(stage) != stage_hash(stage)]


def check(path: Path) -> None:
    """Raise UserError if the file has another hash than the code: of the running stage, or of any if none runs."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removeprefix("gpt2core.stages.").replace("_", "-") if spec else ""
    if changed := outdated(path, [name] if name in stage_code.stages() else None):
        raise UserError(
            f"{path}: of other code than the installed gpt2core {__version__} for {', '.join(changed)}; "
            "update it: gpt2core params"
        )


def update(path: Path) -> list[str]:
    """Update the file, if it exists; return a line for each changed stage."""
    changed = outdated(path)
    if path.exists() and files.read_text(path) != render():
        files.write_text(path, render())
    return [f"changed the code of {stage}: dvc repro runs it again" for stage in changed]
