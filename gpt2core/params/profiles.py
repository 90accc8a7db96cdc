"""Profiles: overlays in `profiles/`, and `params.yaml` written from one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from gpt2core import files
from gpt2core.config.renames import PROFILES
from gpt2core.errors import UserError
from gpt2core.log import logger
from gpt2core.params.load import load_params
from gpt2core.params.render import render

HINTS = (
    "Another profile: make profile NAME=tiny. One other value: dvc exp run -S pretrain.lr=0.001",
)  # fmt: skip


def render_profile(path: Path) -> str:
    """Return `params.yaml` under a profile, with the profile's own comments. UserError if the profile is not valid."""
    values = load_params(path).model_dump()
    text = files.read_text(path)
    return render(values, "\n".join([*profile_header(text), *HINTS]), own_comments(text))


def profile_header(text: str) -> list[str]:
    """Return the lines of the comment at the top of a profile."""
    return [line.removeprefix("#").strip() for line in takewhile(lambda line: line[:1] == "#", text.splitlines())]


def own_comments(text: str) -> dict[tuple[str, str], str]:
    r"""Return the comments next to values in a params file or profile, by section ("" for none) and key.

    >>> own_comments("seed: 1  # lucky\npretrain:\n  lr: 0.1\n  max_steps: 9  # 3 * 3\n")
    {('', 'seed'): 'lucky', ('pretrain', 'max_steps'): '3 * 3'}
    """
    top = YAML().load(text)
    sections = {"": top} | {name: rows for name, rows in top.items() if isinstance(rows, CommentedMap)}
    return {
        (section, key): tokens[2].value.splitlines()[0].removeprefix("#").strip()
        for section, rows in sections.items()
        for key, tokens in rows.ca.items.items()
        if tokens[2] and tokens[2].value.startswith("#")
    }


def _rendered(profiles: Iterable[Path]) -> Iterator[str]:
    """Yield `params.yaml` under each of the profiles that are valid."""
    for path in profiles:
        with contextlib.suppress(UserError):
            yield render_profile(path)


def write_profile(name: str, root: Path = Path(), *, force: bool = False) -> str:
    """Write `params.yaml` from the profile `profiles/NAME.yaml`; return the profile's present name.

    Raises:
        UserError: there is no such profile, it is not valid, or `params.yaml` has edits that it would lose.
    """
    if name in PROFILES:
        logger.warning(f"the profile {name} is now called {PROFILES[name]}")
        name = PROFILES[name]
    profiles = {path.stem: path for path in sorted((root / "profiles").glob("*.yaml"))}
    if name not in profiles:
        there_are = ", ".join(profiles) or f"none, since {root / 'profiles'} has none; clone gpt2core's repository"
        raise UserError(f"NAME={name}: no such profile; there are: {there_are} (make profile NAME=tiny)")
    params = root / "params.yaml"
    new = render_profile(profiles[name])
    if params.exists() and not force and files.read_text(params) not in _rendered(profiles.values()):
        raise UserError(
            "params.yaml was edited, and this would overwrite it: save it as profiles/MINE.yaml, "
            f"or: make profile NAME={name} FORCE=1"
        )
    files.write_text(params, new)
    return name
