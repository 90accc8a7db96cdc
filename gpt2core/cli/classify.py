"""`gpt2core classify`: the classes of texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gpt2core import files, runtime
from gpt2core.cli import options
from gpt2core.errors import UserError, listed

MAX_SHOWN = 5  # classes per text


@click.command(short_help="Name the class of texts.")
@options.model_dir
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--file", "path", type=click.Path(path_type=Path, allow_dash=True),
              help="A file with one text per line, or - for standard input; empty lines are ignored.")  # fmt: skip
@click.option("--column", help="The file is CSV with a header line, and the texts are in this column.")
@click.option("--probabilities", is_flag=True, help="Show the probability of each class, up to the five most likely.")
@options.as_json
def classify(
    model_dir: Path,
    texts: tuple[str, ...],
    path: Path | None,
    column: str | None,
    probabilities: bool,
    as_json: bool,
) -> None:
    """Classify each TEXT, or each text in a file, with the classifier in MODEL_DIR, and show the probability."""
    if not texts and path is None:
        raise click.UsageError("Missing argument 'TEXT...': give texts, or --file (- is standard input).")
    if column and path is None:
        raise click.UsageError("--column needs --file.")
    from gpt2core.checkpoint.model_dir import load_classifier
    from gpt2core.inference.classify import classify as predict_classes

    all_texts = [*texts, *(_read(path, column) if path else ())]
    model, tokenizer = load_classifier(model_dir, device=runtime.device())
    results: list[dict[str, Any]] = []
    for text, prediction in zip(all_texts, predict_classes(model, tokenizer, all_texts), strict=True):
        by_class = {name: round(value, 6) for name, value in prediction.probabilities.items()}
        results.append({"text": text, "label": prediction.label, "probabilities": by_class})
    if as_json:
        options.print_json(results)
        return
    width = max(6, *map(len, model.labels))
    for result in results:
        label, by_class = result["label"], result["probabilities"]
        cell = _format(by_class) if probabilities else f"{by_class[label]:6.1%}"
        options.show(f"{label:<{width}} {cell}  {result['text']}")


def _format(probabilities: dict[str, float]) -> str:
    """Return the probabilities in one line: a few classes in their order, or the most likely of many.

    >>> _format({"ham": 0.125, "spam": 0.875})
    'ham 12.5%  spam 87.5%'
    >>> _format({str(n): n / 45 for n in range(10)})
    '9 20.0%  8 17.8%  7 15.6%  6 13.3%  5 11.1%  and 5 more'
    """
    names, more = list(probabilities), len(probabilities) - MAX_SHOWN
    if more > 0:
        names = sorted(names, key=lambda name: -probabilities[name])[:MAX_SHOWN]
    cells = [f"{name} {probabilities[name]:.1%}" for name in names]
    return "  ".join([*cells, f"and {more} more"] if more > 0 else cells)


def _read(path: Path, column: str | None) -> list[str]:
    """Read the texts of a file. Raises UserError if there are none, or the column is missing."""
    if str(path) == "-":
        name, content = "standard input", files.decode_text(_standard_input(), "standard input")
    else:
        name, content = str(path), files.read_text(path)
    texts = content.split("\n") if column is None else _column(name, content, column)
    texts = [text.removesuffix("\r") for text in texts if text.strip()]
    if not texts:
        raise UserError(f"{name}: has no text; it needs one per line, or --column and a CSV with a header line")
    return texts


def _standard_input() -> bytes:
    """Read standard input, which may never end, up to the limit of a file."""
    content = sys.stdin.buffer.read(files.MAX_TEXT_BYTES + 1) if sys.stdin else b""
    if len(content) > files.MAX_TEXT_BYTES:
        raise UserError(f"standard input: is larger than {files.MAX_TEXT_BYTES:,} bytes, the limit for a text")
    return content


def _column(name: str, content: str, column: str) -> list[str]:
    header, rows = files.read_csv(name, content)
    if column not in header:
        raise UserError(f"{name}: has no column {column!r}; its header line has {listed(header)}")
    return [cells[header.index(column)] for _, cells in rows]
