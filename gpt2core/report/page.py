"""What the pages share: templates, tables, and pictures drawn once for light and once for dark screens."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2core.tracking import plots


@dataclass(frozen=True)
class Picture:
    """A figure as two data URLs."""

    caption: str
    light: str
    dark: str


@dataclass(frozen=True)
class Table:
    """numeric: the columns that are numbers, by index."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    numeric: Sequence[int] = ()

    def without_caption(self) -> Table:
        return replace(self, caption="")


def picture(caption: str, plot: Callable[..., None], *arguments: Any) -> Picture:
    """Draw `plot(*arguments, path)` of `gpt2core.tracking.plots`, for light screens and for dark ones."""
    drawn = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        for name in ("light", "dark"):
            with plots.theme(name):
                plot(*arguments, path)
            drawn[name] = "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
    return Picture(caption, **drawn)


def render(template: str, *, package: str = "gpt2core.report", **values: Any) -> str:
    """A page. Every value is escaped, so that a model's text cannot become markup.

    Args:
        template: its file.
        package: under whose templates/ it lies; it may build on those of this package.
        values: what it shows.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, "gpt2core.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)
