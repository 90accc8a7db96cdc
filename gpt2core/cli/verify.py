"""`gpt2core verify`: checks of a model directory or checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt2core.cli import options

if TYPE_CHECKING:
    from gpt2core.checkpoint.verify import Report


@click.command(short_help="Verify a model directory or checkpoint.")
@click.argument("directory", metavar="DIR", type=options.PATH)
@options.as_json
def verify(directory: Path, as_json: bool) -> None:
    """Verify that DIR is a complete model directory or OpenAI checkpoint, and show its type and sizes.

    Reads every tensor: names, shapes, checksums if available, no NaN; and checks that the tokenizer fits the model. The
    exit code is 1 if something is missing or damaged; all problems are listed.
    """
    from gpt2core.checkpoint.verify import verify as verify_directory

    report = verify_directory(directory)
    if as_json:
        options.print_json({**dataclasses.asdict(report), "whole": report.is_whole})
    else:
        _print(report)
    sys.exit(0 if report.is_whole else 1)


def _print(report: Report) -> None:
    options.show(f"{report.path}: {report.kind}, {'whole' if report.is_whole else 'not whole'}")
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
            options.show(f"  {name:<13} {value}")
    for problem in report.problems:
        options.show(f"  problem: {problem}")
