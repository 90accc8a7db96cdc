"""`params.yaml` as text, with a comment for each key."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from gpt2core.config.top_level import TopLevel
from gpt2core.params.schema import SECTIONS, description, keys_of

WIDTH = 128
COMMENT_COLUMN = 24
# Strings that YAML 1.1 and 1.2 read as themselves without quotation marks; the words that they do not are excluded.
PLAIN = re.compile(r"(?!(?i:true|false|yes|no|on|off|null|y|n)$)[A-Za-z](?:[\w ./+=-]*[\w./+=-])?")

Comments = Mapping[tuple[str, str], str]


def render(values: Mapping[str, Any], header: str = "", comments: Comments | None = None) -> str:
    """Return the text of a params file with these values, all keys of them.

    The header is a comment at the top; `comments`, by section and key, replace the keys' descriptions.
    """
    comments = comments or {}
    lines = [f"# {line}" for line in header.splitlines()]
    lines += ["", *(line for key in TopLevel.model_fields for line in key_lines("", key, values[key], comments))]
    for section in SECTIONS:
        lines += ["", *section_lines(section, values[section], comments)]
    return "\n".join(lines).lstrip("\n") + "\n"


def section_lines(section: str, values: Mapping[str, Any], comments: Comments | None = None) -> list[str]:
    """Return the lines of a section: its name, what it is, and its keys."""
    schema = SECTIONS[section]
    paragraphs = [" ".join(text.split()) for text in inspect.cleandoc(schema.__doc__ or "").split("\n\n")]
    about = [f"  # {line}" for text in paragraphs for line in textwrap.wrap(text, WIDTH - 4)]
    keys = [line for key in keys_of(schema) for line in key_lines(section, key, values[key], comments)]
    return [f"{section}:", *about, *keys]


def key_lines(section: str, key: str, value: Any, comments: Comments | None = None) -> list[str]:
    """Return the line of a key, and further lines for the rest of a long comment.

    >>> key_lines("tokenizer", "shuffle", True)
    ['  shuffle: true         # put the training documents in a random order, by seed']
    """
    code = f"{'  ' if section else ''}{key}: {yaml_value(value)}"
    first, *more = comment_lines(code, (comments or {}).get((section, key)) or description(section, key))
    return [f"{code:<{COMMENT_COLUMN - 2}}  {first}", *more]


def comment_lines(code: str, comment: str) -> list[str]:
    """Return a comment in lines that fit next to and below a line of code."""
    column = max(COMMENT_COLUMN, len(code) + 2)
    indent = " " * (column if column < WIDTH // 2 else COMMENT_COLUMN)
    lines = textwrap.wrap(
        comment, WIDTH - 2, initial_indent=" " * column, subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
    first, *more = lines or [""]
    return [f"# {first.strip()}", *(f"{indent}# {line.strip()}" for line in more)]


def yaml_value(value: Any) -> str:
    """Return a value as YAML that versions 1.1 and 1.2 read alike.

    >>> [yaml_value(value) for value in (0.00005, None, [True, "a b"], "yes")]
    ['0.00005', 'null', '[true, a b]', '"yes"']
    """
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_value, value))}]"
    if isinstance(value, float):  # not 5e-05, which YAML 1.1 reads as a string
        text = format(Decimal(repr(value)), "f")
        return text if "." in text else f"{text}.0"
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)
