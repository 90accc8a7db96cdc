"""Common parts of the pages: templates, tables, and pictures for light and dark screens."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2core.tracking.plots import figure


@dataclass(frozen=True)
class Picture:
    """A figure as two data URLs."""

    caption: str
    light: str
    dark: str


@dataclass(frozen=True)
class Table:
    """A table. The first `n_text_columns` columns are aligned left; the others, numbers, are aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    n_text_columns: int = 1


def picture(caption: str, plot: Callable[..., None], *arguments: Any) -> Picture:
    """Draw a figure with `plot(*arguments, path)` of `gpt2core.tracking.plots`, for light and for dark screens."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        plot(*arguments, path)
        svg = path.read_text("utf-8")
    return Picture(caption, _data_url(svg), _data_url(figure.dark(svg)))


def _data_url(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def render(template: str, *, package: str = "gpt2core.report", **values: Any) -> str:
    """Return a page. Every value is escaped, so that a model's text cannot become markup.

    Args:
        template: its file.
        package: whose folder templates/ contains it; it may extend templates of this package.
        values: variables of the template.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, "gpt2core.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)
