"""`gpt2core classify`"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import click

from gpt2core import files
from gpt2core.cli import options
from gpt2core.errors import UserError

MAX_SHOWN = 5  # classes of a text


@click.command(short_help="Name the class of texts.")
@options.model_dir
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--file", "path", type=click.Path(path_type=Path, allow_dash=True),
              help="A file of one text a line, or - for standard input; empty lines are left out.")  # fmt: skip
@click.option("--column", help="The file is CSV with a header line, and the texts are in this column.")
@click.option(
    "--probabilities",
    is_flag=True,
    help="Show each class's probability, of many the five likeliest, not the likeliest's alone.",
)
@options.as_json
def classify(
    model_dir: Path,
    texts: tuple[str, ...],
    path: Path | None,
    column: str | None,
    probabilities: bool,
    as_json: bool,
) -> None:
    """Name the class of each TEXT, or of each in a file, with the classifier in MODEL_DIR, and how sure it is."""
    if not texts and path is None:
        raise click.UsageError("Missing argument 'TEXT...': give texts, or --file (- is standard input).")
    if column and path is None:
        raise click.UsageError("--column needs --file.")
    from gpt2core.inference.classify import classify as predict_classes

    all_texts = [*texts, *(_read(path, column) if path else ())]
    model, tokenizer = options.load_classifier(model_dir)
    results: list[dict[str, Any]] = []
    for text, (label, probability) in zip(all_texts, predict_classes(model, tokenizer, all_texts), strict=True):
        shares = {name: round(value, 6) for name, value in probability.items()}
        results.append({"text": text, "label": label, "probabilities": shares})
    if as_json:
        options.print_json(results)
        return
    width = max(6, *map(len, model.labels))
    for result in results:
        label, shares = result["label"], result["probabilities"]
        shown = _shown(shares) if probabilities else f"{shares[label]:6.1%}"
        click.echo(f"{label:<{width}} {shown}  {result['text']}")


def _shown(shares: dict[str, float]) -> str:
    """The classes' probabilities in a line: a few classes in their order, of many the likeliest first.

    >>> _shown({"ham": 0.125, "spam": 0.875})
    'ham 12.5%  spam 87.5%'
    >>> _shown({str(n): n / 45 for n in range(10)})
    '9 20.0%  8 17.8%  7 15.6%  6 13.3%  5 11.1%  and 5 more'
    """
    names, more = list(shares), len(shares) - MAX_SHOWN
    if more > 0:
        names = sorted(names, key=lambda name: -shares[name])[:MAX_SHOWN]
    told = [f"{name} {shares[name]:.1%}" for name in names]
    return "  ".join([*told, f"and {more} more"] if more > 0 else told)


def _read(path: Path, column: str | None) -> list[str]:
    """The texts of a file. Raises UserError if there are none, or not the column."""
    if str(path) == "-":
        name, content = "standard input", sys.stdin.read()
    else:
        name, content = str(path), files.read_text(path)
    content = content.removeprefix("\ufeff")
    texts = content.split("\n") if column is None else _column(name, content, column)
    texts = [text.removesuffix("\r") for text in texts if text.strip()]
    if not texts:
        raise UserError(f"{name}: holds no text; it needs one a line, or --column and a CSV with a header line")
    return texts


def _column(name: str, content: str, column: str) -> list[str]:
    rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        if column not in (rows.fieldnames or ()):
            raise UserError(f"{name}: has no column {column!r}; its header line has {', '.join(rows.fieldnames or ())}")
        return [row[column] or "" for row in rows]
    except csv.Error as error:
        raise UserError(f"{name}, row {rows.line_num}: not CSV: {error}; is a quotation mark left open?") from None
