"""Parameters: reading `params.yaml`, and the schema of each section in its own module.

A stage loads its own sections only and depends on their modules only, so that a new parameter of the judge reruns no
training. What looks at the whole file (checks, profiles, rendering) is in `gpt2core.params`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gpt2core.config.fields import Section
from gpt2core.config.renames import with_new_names
from gpt2core.errors import UserError

SectionT = TypeVar("SectionT", bound=Section)


def project_root() -> Path:
    """Return the project's root as DVC names it (experiments run in a temporary copy), or the working directory."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read YAML as DVC does (YAML 1.2), so that `6e-4` is a number to both. UserError if it is not YAML."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            return YAML(typ="safe").load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run in the project's folder, or: make profile NAME=embedded") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def load_section(
    schema: type[SectionT], name: str | None = None, path: str | os.PathLike[str] = "params.yaml"
) -> SectionT:
    """Return one section of a params file that `gpt2core.params.load_params` has checked.

    Args:
        schema: class of the section.
        name: name of the section. None: the keys that are in no section (`TopLevel`).
        path: the params file.
    """
    values = with_new_names(read_yaml(path))
    if name is None:
        return schema.model_validate({key: values[key] for key in schema.model_fields})
    return schema.model_validate(values[name])
