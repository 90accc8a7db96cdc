"""`gpt2core verify`"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt2core.cli import options

if TYPE_CHECKING:
    from gpt2core.checkpoint.verify import Report


@click.command(short_help="What a directory is, and if it is whole.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@options.as_json
def verify(directory: Path, as_json: bool) -> None:
    """Say what DIR is (a model directory or OpenAI's checkpoint) and whether it is whole.

    Reads every tensor: names, shapes, checksums where there are any, no NaN; and holds the tokenizer against the model.
    Ends with 1 if something is missing or damaged, and lists all of it.
    """
    from gpt2core.checkpoint.verify import verify as examine

    report = examine(directory)
    if as_json:
        options.print_json({**dataclasses.asdict(report), "whole": report.is_whole})
    else:
        _print(report)
    sys.exit(0 if report.is_whole else 1)


def _print(report: Report) -> None:
    click.echo(f"{report.path}: {report.kind}, {'whole' if report.is_whole else 'not whole'}")
    rows = (
        ("parameters", report.parameters and f"{report.parameters:,}"),
        ("layers", report.layers),
        ("width", report.width),
        ("heads", report.heads),
        ("context", report.context and f"{report.context:,} tokens"),
        ("vocabulary", report.vocabulary and f"{report.vocabulary:,} tokens"),
        ("labels", report.labels and ", ".join(report.labels)),
        ("weights", report.dtype),
        ("tokenizer", report.tokenizer or "none"),
        ("transformers", "opens it" if report.transformers else "cannot open it"),
    )
    for name, value in rows:
        if value is not None:
            click.echo(f"  {name:<13} {value}")
    for problem in report.problems:
        click.echo(f"  problem: {problem}")
