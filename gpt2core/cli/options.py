"""Options, checks, and output that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2core.errors import UserError
from gpt2core.log import escaped
from gpt2core.runtime import DECODING_DTYPES

if TYPE_CHECKING:
    from rich.text import Text

PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)

model_dir = click.argument("model_dir", type=PATH)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
limit = click.option("--limit", type=POSITIVE, help="Maximum number of entries, the first ones.")
open_browser = click.option("--open", "open_browser", is_flag=True, help="Also open the page in the browser.")
dtype = click.option(
    "--dtype", type=click.Choice(DECODING_DTYPES), default="float32", show_default=True,
    help="Weight precision. Smaller dtypes are faster; `gpt2core perplexity` shows their loss.",
)  # fmt: skip


def seed(use: str) -> Callable[..., Any]:
    """Return the option `--seed`; `use` says for what."""
    return click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help=f"Random seed for {use}."
    )


def max_new_tokens(default: int, text: str) -> Callable[..., Any]:
    """Return the option `--max-new-tokens`."""
    return click.option(
        "--max-new-tokens", type=click.IntRange(1, 1_000_000), default=default, show_default=True, help=text
    )


def port(default: int) -> Callable[..., Any]:
    """Return the option `--port`."""
    return click.option(
        "--port", type=click.IntRange(0, 65535), default=default, show_default=True, help="0 takes a free port."
    )


def sampling(command: Any) -> Any:
    """Add the options of `Sampling` to a command, which gets them as one argument `sampling`."""

    @functools.wraps(command)
    def with_sampling(**arguments: Any) -> Any:
        from gpt2core.inference import Sampling

        names = [field.name for field in dataclasses.fields(Sampling)]
        return command(sampling=Sampling(**{name: arguments.pop(name) for name in names}), **arguments)

    probability = click.FloatRange(min=0, max=1, min_open=True)
    options = (
        click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True,
                     help="0 takes the most likely token; higher values give more varied text."),
        click.option("--top-k", type=POSITIVE, help="Sample from the k most likely tokens only."),
        click.option("--top-p", type=probability,
                     help="Sample from the smallest set of most likely tokens with this total probability."),
        click.option("--min-p", type=probability,
                     help="Sample from tokens with at least this fraction of the highest probability."),
        click.option("--repetition-penalty", type=click.FloatRange(min=0, min_open=True), default=1.0,
                     show_default=True, help="Above 1, tokens that are already in the text become less likely."),
    )  # fmt: skip
    for option in reversed(options):
        with_sampling = option(with_sampling)
    return with_sampling


def require_extra(extra: str, *modules: str) -> None:
    """Raise UserError that says what to install, if a module of an extra is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        command = click.get_current_context().command.name
        raise UserError(f"`gpt2core {command}` needs {' and '.join(missing)}; install: pip install 'gpt2core[{extra}]'")


def show(text: str, *, nl: bool = True) -> None:
    """Print a text that a file or a model gives. A terminal would obey its control characters, so they are escaped."""
    click.echo(escaped(text) if sys.stdout.isatty() else text, nl=nl)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text] | None], n_text_columns: int = 1
) -> None:
    """Print a table.

    Args:
        title: above the table; may be empty.
        columns: their names.
        rows: cells of each row; None starts a new section.
        n_text_columns: number of columns that are aligned left; the others, numbers, are aligned right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < n_text_columns else "right", overflow="fold")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    Console(highlight=False, markup=False, emoji=False).print(table)  # names and texts may look like markup
