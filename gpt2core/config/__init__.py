"""Parameters: reading `params.yaml`, and the schema of each section in its own module.

A stage loads its own sections only and depends on their modules only, so that a new parameter of the judge reruns no
training. What looks at the whole file (checks, profiles, rendering) is in `gpt2core.params`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from gpt2core import files
from gpt2core.config.fields import Section
from gpt2core.config.renames import with_new_names
from gpt2core.errors import UserError

MAX_YAML_BYTES = 1 << 20
MAX_YAML_DEPTH = 50
SectionT = TypeVar("SectionT", bound=Section)


def project_root() -> Path:
    """Return the project's root as DVC names it (experiments run in a temporary copy), or the working directory."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def checkpoints_dir() -> Path:
    """Return the folder of training checkpoints and unfinished work, which no one else can enter."""
    folder = project_root() / ".checkpoints"
    with contextlib.suppress(OSError):  # who writes into it reports that
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    return folder


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read YAML as DVC does (YAML 1.2), so that `6e-4` is a number to both.

    Raises:
        UserError: missing, no regular file, larger than MAX_YAML_BYTES, not YAML, nested too deeply, or with an alias
            (`*name`): a few lines of nested aliases unfold to gigabytes.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; run in the project's folder, or: make profile NAME=embedded")
    text = files.read_text(path, MAX_YAML_BYTES)
    depth = 0
    try:
        for event in YAML(typ="safe").parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise UserError(f"{path}: nested more than {MAX_YAML_DEPTH} levels deep; params have three")
            if isinstance(event, AliasEvent):
                line = event.start_mark.line + 1
                raise UserError(f"{path}, line {line}: an alias (*name) is not allowed; write the value itself")
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError) as error:  # ValueError: a number with thousands of digits
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def load_section(
    schema: type[SectionT], name: str | None = None, path: str | os.PathLike[str] = "params.yaml"
) -> SectionT:
    """Return one section of a params file that `gpt2core.params.load_params` has checked, or some keys of it.

    Without a name: the keys that are in no section (`TopLevel`).
    """
    values = with_new_names(read_yaml(path))
    section = values if name is None else values[name]
    return schema.model_validate({key: section[key] for key in schema.model_fields if key in section})
