"""`gpt2core summary`: the results of the pipeline, on one screen."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt2core import files
from gpt2core.cli import options
from gpt2core.errors import UserError
from gpt2core.report import results


@click.command(short_help="Show the results of the pipeline, on one screen.")
@options.as_json
def summary(as_json: bool) -> None:
    """Show the pipeline's headline metrics, a generated text, three classified messages, and two responses.

    The table names the strongest baseline of the test accuracy; --json has its metric key in "strongest_baseline".
    """
    metrics = {name: _read(name) for name in results.NAMES}
    samples = _samples()
    if as_json:
        strongest = results.strongest_baseline(metrics["finetune_classify"])
        options.print_json({"metrics": metrics, "strongest_baseline": strongest, **samples})
        return
    console = Console(highlight=False)
    table = Table(title="gpt2core: headline metrics", title_justify="left")
    table.add_column("stage")
    table.add_column("metric")
    table.add_column("value", justify="right")
    last = None
    for stage, description, value in results.headlines(metrics):
        if last not in (None, stage):
            table.add_section()
        table.add_row(stage if stage != last else "", description, value)
        last = stage
    console.print(table)
    console.print("\n[bold]A text by models/pretrained[/bold]")
    console.print(Text(samples["text"]))
    console.print("\n[bold]Messages, by models/classifier[/bold]")
    for row in samples["messages"]:
        predicted, label = (f"{row[key]:<{_width(samples, key)}}" for key in ("predicted", "label"))
        console.print(Text(f"{predicted} (is {label})  {row['text']}"))
    console.print("\n[bold]Instructions, answered by models/instruct[/bold]")
    for row in samples["answers"]:
        console.print(Text(f"> {row['instruction']}" + (f"\n> {row['input']}" if row["input"] else "")))
        console.print(Text(row["response"] + "\n"))
    console.print("All of it as one page, with pictures: make report")
    console.print("All runs and curves: .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db")


def _width(samples: dict[str, Any], key: str) -> int:
    return max(len(row[key]) for row in samples["messages"])


def _read(name: str) -> dict[str, Any]:
    path = Path("metrics") / f"{name}.json"
    if not path.exists():
        raise UserError(f"{path}: no such file; make it: dvc repro")
    return files.read_json(path)


def _samples() -> dict[str, Any]:
    """One generated text, three messages (of different classes, from the data) and two instructions of the test set."""
    from gpt2core.inference.classify import classify
    from gpt2core.tasks import labeled_texts

    texts = files.read_json("metrics/samples.json")
    messages = labeled_texts.read_table(Path("data/raw/classification.jsonl"))
    by_class = [[m for m in messages if m.label == label] for label in reversed(labeled_texts.classes(messages))]
    turns = (message for turn in itertools.zip_longest(*by_class) for message in turn if message)
    chosen = list(itertools.islice(turns, 3))
    model, tokenizer = options.load_classifier(Path("models/classifier"))
    predicted = [prediction.label for prediction in classify(model, tokenizer, [m.text for m in chosen])]
    answers = files.read_json("data/responses/test.json")[:2]
    return {
        "text": texts[-1]["text"],
        "messages": [
            {"label": m.label, "predicted": p, "text": m.text} for m, p in zip(chosen, predicted, strict=True)
        ],
        "answers": [{key: a[key] for key in ("instruction", "input", "response")} for a in answers],
    }
