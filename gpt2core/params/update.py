"""Updates of an older `params.yaml` or profile: present names, and all keys, with the values and comments it has.

The file is edited line by line, so that everything else in it stays as it is.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from gpt2core import files
from gpt2core.config import read_yaml
from gpt2core.config.renames import PARAMS, PROFILES, REMOVED, VALUES, with_new_names
from gpt2core.config.top_level import TopLevel
from gpt2core.errors import UserError
from gpt2core.params.load import missing
from gpt2core.params.render import key_lines, section_lines, yaml_value
from gpt2core.params.schema import SECTIONS, defaults, description, keys_of


def update_file(path: Path) -> list[str]:
    """Update a params file or profile in place, and keep the old one as `NAME.old`.

    Returns:
        A line for each renamed, added, or removed key. Without any the file stays untouched.

    Raises:
        UserError: the file cannot be read, has a form that cannot be edited line by line, or would lose a value.
    """
    before = with_new_names(read_yaml(path))
    if not isinstance(before, dict):
        raise UserError(f"{path}: must hold sections ({', '.join(SECTIONS)}), found {before!r}")
    new, changes = updated(files.read_text(path), path)
    if changes:
        if lost := _lost(before, YAML(typ="safe").load(new)):
            raise UserError(f"{path}: cannot keep the value of {', '.join(lost)}; write each key on its own line")
        shutil.copy2(path, path.with_name(f"{path.name}.old"))
        files.write_text(path, new)
    return changes


def updated(text: str, where: str | Path = "params.yaml") -> tuple[str, list[str]]:
    """Return the updated text of a params file or profile, and a line for each change.

    Raises:
        UserError: the file has a form that cannot be edited line by line, such as a section in one line.
    """
    line_end = "\r\n" if "\r\n" in text else "\n"
    try:
        new, changes = _updated(text.replace("\r\n", "\n"))
        YAML(typ="safe").load(new)
    except (YAMLError, KeyError, TypeError, _CannotEdit) as error:
        reason = error if isinstance(error, _CannotEdit) else "its form is too unusual to be edited"
        raise UserError(f"{where}: {reason}; write each key on its own line, without anchors and documents") from None
    return new.replace("\n", line_end), changes


class _CannotEdit(Exception):
    """The form of a file is not one key per line."""


def _updated(text: str) -> tuple[str, list[str]]:
    changes: list[str] = []
    for old, new in PARAMS.items():
        if (key := _find(text, old)) and not _find(text, new):
            text = key.replaced(new.partition(".")[2], key.value)
            changes.append(f"renamed {old}: now {new}")
    for name, values in {"extends": PROFILES, **VALUES}.items():
        if (key := _find(text, name)) and isinstance(key.loaded, str) and key.loaded in values:
            text = key.replaced(key.name, key.value.replace(key.loaded, values[key.loaded]), description(*_split(name)))
            changes.append(f"renamed {name}: {key.loaded} is now {values[key.loaded]}")
    for name, advice in REMOVED.items():
        if key := _find(text, name):
            text = _joined([*key.lines[: key.number], *key.lines[key.end + 1 :]])
            changes.append(f"removed {name}: {advice}")
    if not _find(text, "extends"):  # an overlay has only the keys that it changes
        text, added = _with_all_keys(text)
        changes += added
    return text, changes


def _with_all_keys(text: str) -> tuple[str, list[str]]:
    """Return the text with each missing key below the key that precedes it in `params.yaml`."""
    text = _without_empty_sections(text)
    absent, standard, changes = missing(YAML(typ="safe").load(text)), defaults(), []
    order = {"": [*TopLevel.model_fields, *SECTIONS], **{name: keys_of(schema) for name, schema in SECTIONS.items()}}
    for name in absent:
        section, key = _split(name)
        if key in SECTIONS:
            lines, what = ["", *section_lines(key, standard[key])], "all keys"
        else:
            value = standard[section][key] if section else standard[key]
            indent = " " * _indent(text, section)
            lines = [indent + line.lstrip() for line in key_lines(section, key, value)]
            what = yaml_value(value)
        earlier = [f"{section}.{other}".lstrip(".") for other in order[section][: order[section].index(key)]]
        place = next((found for other in reversed(earlier) if (found := _find(text, other))), None)
        parent = _find(text, section) if section else None
        rows = text.splitlines()
        below = place.end if place else parent.number if parent else -1
        text = _joined([*rows[: below + 1], *lines, *rows[below + 1 :]])
        changes.append(f"added {name}: {what}")
    return text, changes


def _without_empty_sections(text: str) -> str:
    """Return the text without sections that have no keys, such as `evaluate: {}`."""
    for name, rows in YAML(typ="safe").load(text).items():
        if name in SECTIONS and not rows:
            number = YAML().load(text).lc.key(name)[0]
            lines = text.splitlines()
            text = _joined([*lines[:number], *lines[number + 1 :]])
    return text


def _indent(text: str, section: str) -> int:
    """Return the column of a section's keys; 0 for no section."""
    if not section:
        return 0
    rows = YAML().load(text)[section]
    return int(rows.lc.key(next(iter(rows)))[1])


@dataclass(frozen=True)
class _Key:
    """A key in the lines of a file: its number and column, the last line of its value, and the loaded value."""

    lines: list[str]
    name: str
    number: int
    column: int
    end: int
    comment_column: int | None
    loaded: Any

    @property
    def value(self) -> str:
        """The text between the key's name and its comment."""
        return self.lines[self.number][self.column : self.comment_column].partition(self.name)[2].rstrip()

    def replaced(self, name: str, value: str, comment: str = "") -> str:
        """Return the file's text with another name and value; and comment, if it explains the old value."""
        line = self.lines[self.number]
        code = f"{line[: self.column]}{line[self.column : self.comment_column].partition(self.name)[0]}{name}{value}"
        if self.comment_column is not None:
            old = line[self.comment_column :]
            is_outdated = comment and re.search(rf"\b{re.escape(str(self.loaded))}:", old)
            code = f"{code:<{self.comment_column - 2}}  {f'# {comment}' if is_outdated else old}"
        return _joined([*self.lines[: self.number], code, *self.lines[self.number + 1 :]])


def _find(text: str, name: str) -> _Key | None:
    """Return where a key or a section is, or None."""
    section, key = _split(name)
    top = YAML().load(text)
    rows = top.get(section) if section else top
    if not isinstance(rows, CommentedMap) or key not in rows:
        return None
    if rows.fa.flow_style():
        raise _CannotEdit(f"{section or 'the file'} is written in one line")
    lines = text.splitlines()
    number, column = rows.lc.key(key)
    starts = sorted(mapping.lc.key(other)[0] for mapping in (top, rows) for other in mapping)
    end = next((start for start in starts if start > number), len(lines)) - 1
    while end > number and (not lines[end].strip() or re.match(rf" {{0,{column}}}#", lines[end])):
        end -= 1  # blank lines and comments above the next key
    token = rows.ca.items[key][2] if key in rows.ca.items else None
    comment_column = None
    if token is not None and token.value.startswith("#") and token.start_mark.line == number:
        comment_column = token.start_mark.column
    return _Key(lines, key, number, column, end, comment_column, rows[key])


def _split(name: str) -> tuple[str, str]:
    """Return the section ("" for none) and the key of a name."""
    section, _, key = name.rpartition(".")
    return section, key


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _lost(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of keys with another value, other than those that are removed on purpose."""
    lost = []
    for name, rows in before.items():
        pairs = [(name, rows, after.get(name))]
        if isinstance(rows, dict):
            pairs = [(f"{name}.{key}", value, after[name].get(key)) for key, value in rows.items()]
        lost += [key for key, old, new in pairs if old != new and rows is not None and key not in (*REMOVED, "extends")]
    return lost
