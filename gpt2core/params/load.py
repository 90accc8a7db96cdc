"""Reading a params file or a profile as a whole, and reporting all of its errors in one message."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt2core.config import read_yaml
from gpt2core.config.renames import PARAMS, PROFILES, VALUES, with_new_names
from gpt2core.errors import UserError
from gpt2core.log import logger
from gpt2core.params import code
from gpt2core.params.checks import contradictions
from gpt2core.params.schema import SECTIONS, Params, all_keys, defaults

MISSING = "missing; "
MAX_PROBLEMS = 20  # that one message lists
DEFAULTS = "defaults"  # what the profile `embedded` extends


def load_params(path: str | os.PathLike[str] = "params.yaml") -> Params:
    """Read and check a params file or a profile. Raises one UserError that lists the first 20 errors in it."""
    content, command = read_yaml(path), command_for("params")
    if Path(path).name != "params.yaml":
        command += f" FILE={path}" if command.startswith("make") else f" {path}"
    elif isinstance(content, dict) and "extends" in content:
        raise UserError(f"{path}: extends: is for profiles; save it as profiles/MINE.yaml, and make profile NAME=MINE")
    values = _complete(content, Path(path))
    problems = [f"{name}: {MISSING}`{command}` adds it" for name in missing(values)]
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        problems += [_explain(details) for details in errors[:MAX_PROBLEMS]]
        n_more = len(errors) - len(errors[:MAX_PROBLEMS])
        wrong = {details["loc"][:2] for details in errors}
    else:
        wrong, n_more = set(), 0
    # What is valid is checked against each other too, so that one run shows both kinds of errors.
    problems += contradictions(_valid_part(values, wrong) if problems else params)
    if problems:
        n_problems = len(problems) + n_more
        noun = "problem" if n_problems == 1 else "problems"
        more = [f"and {n_problems - MAX_PROBLEMS} more"] if n_problems > MAX_PROBLEMS else []
        shown = [f"  {problem}" for problem in [*problems[:MAX_PROBLEMS], *more]]
        raise UserError("\n".join([f"{path}: {n_problems} {noun}", *shown]))
    for old, new in old_names(content):
        logger.warning(f"{path}: {old} is now {new}, and works for one more release; `{command}` updates the file")
    if Path(path).name == "params.yaml":
        code.check(Path(path).with_name(code.FILE))
    return params


def command_for(name: str) -> str:
    """Return a command of gpt2core as messages name it: in a clone, whose Makefile sets up .venv first, its target."""
    return f"{'make' if Path('Makefile').exists() else 'gpt2core'} {name}"


def read_values(path: str | os.PathLike[str] = "params.yaml") -> dict[str, Any]:
    """Return the content of a params file under its present names, unchecked; of a profile, with what it extends."""
    return _complete(read_yaml(path), Path(path))


def _complete(content: Any, path: Path, extended: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold sections ({', '.join(Params.model_fields)}), found {content!r}")
    values = with_new_names(content)
    if "extends" not in values:
        return values
    base = values.pop("extends")
    base = PROFILES.get(base, base) if isinstance(base, str) else base
    if base == DEFAULTS:
        return _merged(defaults(), values)
    known = sorted(file.stem for file in path.parent.glob("*.yaml"))
    if base not in known or base in extended:
        raise UserError(f"{path}: extends: {base!r} must be another profile next to it: {', '.join(known)}")
    file = path.with_name(f"{base}.yaml")
    return _merged(_complete(read_yaml(file), file, (*extended, base)), values)


def _merged(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Return the base with the overlay's values in their places."""
    result = dict(base)
    for name, value in overlay.items():
        is_section = isinstance(value, dict) and isinstance(base.get(name), dict)
        result[name] = base[name] | value if is_section else value
    return result


def old_names(content: Any) -> list[tuple[str, str]]:
    """Return the old names and values in a params file, each with the new one."""
    found = []
    sections = {name: rows for name, rows in content.items() if isinstance(rows, dict)}
    for old, new in PARAMS.items():
        section, _, key = old.partition(".")
        if key in sections.get(section, {}):
            found.append((old, new))
    for name, values in VALUES.items():
        section, _, key = name.partition(".")
        value = sections.get(section, {}).get(key)
        if isinstance(value, str) and value in values:
            found.append((f"{name}: {value}", str(values[value])))
    return found


def missing(values: dict[str, Any]) -> list[str]:
    """Return the names of keys that a params file must have and does not: sections, or keys as `section.key`."""
    absent = [name for name in Params.model_fields if name not in values]
    for section, key in all_keys():
        rows = values.get(section)
        if section in values and (rows is None or (isinstance(rows, dict) and key not in rows)):
            absent.append(f"{section}.{key}")
    return absent


def _explain(details: Any) -> str:
    """Return one line for one error of pydantic: the key, its value, and what is allowed."""
    key = ".".join(str(part) for part in details["loc"])
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        schema = SECTIONS[details["loc"][0]] if len(details["loc"]) > 1 else Params
        allowed = list(schema.model_fields)
        closest = difflib.get_close_matches(str(details["loc"][-1]), allowed, n=1)
        question = f" did you mean {closest[0]}?" if closest else ""
        return f"{key}: unknown key;{question} allowed here: {', '.join(allowed)}"
    if kind == "literal_error":
        return f"{key}: {value!r} is not allowed; allowed: {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"{key}: {value!r} must name a model directory under models/, such as pretrained or openai/124M"
    if kind in ("model_type", "model_attributes_type"):
        return f"{key}: {value!r} must be a section of keys"
    message = details["msg"].removeprefix("Input should be ")
    return f"{key}: {value!r} must be {message}"


def _valid_part(values: dict[str, Any], wrong: set[tuple[Any, ...]]) -> Params:
    """Return the params without missing and wrong keys; to read one of these raises AttributeError."""
    params = Params.model_construct()
    for name in Params.model_fields:
        if name not in values or (name,) in wrong:
            del params.__dict__[name]
        elif name not in SECTIONS:
            params.__dict__[name] = values[name]
        else:
            section = SECTIONS[name].model_construct(**{str(key): value for key, value in values[name].items()})
            for key in SECTIONS[name].model_fields:
                if key not in values[name] or (name, key) in wrong:
                    del section.__dict__[key]
            params.__dict__[name] = section
    return params
