"""The key of section `pretrain` that `tokenize` reads, too: the model to start with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from gpt2core.config.fields import Section
from gpt2core.config.presets import PRESET_NAMES, PRESETS

NO_BASE = "none"
BASE = re.compile(rf"{NO_BASE}|openai/({'|'.join(PRESETS)})|own(/[A-Za-z0-9_][A-Za-z0-9._-]*)+")


def _base(value: str) -> str:
    if BASE.fullmatch(value):
        return value
    reason = "; pretrained is what this stage writes: copy it to models/own/NAME first" if value == "pretrained" else ""
    raise PydanticCustomError("base", f"Input should be none, openai/SIZE ({PRESET_NAMES}) or own/NAME{reason}")


Base = Annotated[
    str,
    AfterValidator(_base),
    Field(
        description="none: random weights | openai/SIZE | own/NAME: continue with this model directory under "
        "models/, with its sizes and its tokenizer"
    ),
]


class WarmStart(Section):
    """What the pretraining starts with."""

    base: Base = NO_BASE


def base_dir(base: str) -> Path | None:
    """Return the model directory of a base; None for `none`."""
    return None if base == NO_BASE else Path("models") / base
