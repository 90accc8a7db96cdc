"""`gpt2core summary`: what the pipeline made, on one screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt2core import files
from gpt2core.cli import options
from gpt2core.errors import UserError

# metrics file, key, what it says, how it is written
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("pretrain", "val_loss", "validation loss, nats a token", ".3f"),
    ("pretrain", "val_perplexity", "validation perplexity", ".2f"),
    ("pretrain", "bits_per_byte", "bits per byte", ".4f"),
    ("pretrain", "bits_per_byte_floor", "  the corpus's own entropy", ".4f"),
    ("pretrain", "trigram_bits_per_byte", "  a trigram model", ".4f"),
    ("finetune_classify", "test_accuracy", "test accuracy", ".2%"),
    ("finetune_classify", "test_f1", "test F1", ".4f"),
    ("finetune_classify", "before_test_accuracy", "  before fine-tuning", ".2%"),
    ("finetune_classify", "baseline_test_accuracy", "  TF-IDF + logistic regression", ".2%"),
    ("finetune_instruct", "val_loss", "validation loss, nats a token", ".3f"),
    ("finetune_instruct", "before_val_loss", "  before fine-tuning", ".3f"),
    ("llm_judge_eval", "mean_score", "mean score, 0 to 100", ".1f"),
    ("llm_judge_eval", "base_score", "  of the base model", ".1f"),
    ("llm_judge_eval", "echo_score", "  of echoing the input", ".1f"),
    ("llm_judge_eval", "nearest_score", "  of the nearest training answer", ".1f"),
)


@click.command(short_help="What the pipeline made, on one screen.")
@options.as_json
def summary(as_json: bool) -> None:
    """Show the pipeline's headline metrics, with a text, three messages and two answers by its models."""
    metrics = {name: _read(name) for name in dict.fromkeys(row[0] for row in ROWS)}
    samples = _samples()
    if as_json:
        options.print_json({"metrics": metrics, **samples})
        return
    console = Console(highlight=False)
    table = Table(title="gpt2core: headline metrics", title_justify="left")
    table.add_column("stage")
    table.add_column("metric")
    table.add_column("value", justify="right")
    last = None
    for name, key, meaning, form in ROWS:
        value = metrics[name].get(key)
        if value is not None:
            stage = name.replace("_", "-")
            judge = f" ({metrics[name]['judge']})" if key == "mean_score" else ""
            if last not in (None, stage):
                table.add_section()
            table.add_row(stage if stage != last else "", meaning + judge, format(value, form))
            last = stage
    console.print(table)
    console.print("\n[bold]A text by models/pretrained[/bold]")
    console.print(Text(samples["text"]))
    console.print("\n[bold]Messages, by models/classifier[/bold]")
    for row in samples["messages"]:
        console.print(Text(f"{row['predicted']:<5} (is {row['label']:<4})  {row['text']}"))
    console.print("\n[bold]Instructions, answered by models/instruct[/bold]")
    for row in samples["answers"]:
        console.print(Text(f"> {row['instruction']}" + (f"\n> {row['input']}" if row["input"] else "")))
        console.print(Text(row["response"] + "\n"))
    console.print("All runs and curves: .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db")


def _read(name: str) -> dict[str, Any]:
    path = Path("metrics") / f"{name}.json"
    if not path.exists():
        raise UserError(f"{path}: no such file; make it: dvc repro")
    return files.read_json(path)


def _samples() -> dict[str, Any]:
    """One generated text, three messages (of either class, from the data) and two instructions of the test set."""
    from gpt2core.data import sms_spam
    from gpt2core.train.classify import encode, predict

    texts = files.read_json("metrics/samples.json")
    messages = sms_spam.read_jsonl(Path("data/raw/sms.jsonl"))
    spam, ham = ([m for m in messages if m.label == label] for label in ("spam", "ham"))
    chosen = [spam[0], ham[0], spam[1]]
    model, tokenizer = options.load_classifier(Path("models/classifier"))
    ids, _ = encode([m.text for m in chosen], tokenizer, model.config.n_positions, None)
    predicted = [model.labels[i] for i in predict(model, ids).argmax(-1).tolist()]
    answers = files.read_json("data/responses/test.json")[:2]
    return {
        "text": texts[-1]["text"],
        "messages": [
            {"label": m.label, "predicted": p, "text": m.text} for m, p in zip(chosen, predicted, strict=True)
        ],
        "answers": [{key: a[key] for key in ("instruction", "input", "response")} for a in answers],
    }
