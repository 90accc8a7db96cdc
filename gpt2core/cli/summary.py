"""`gpt2core summary`, `gpt2core report`: the results of the pipeline, on one screen or as a page."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click

from gpt2core import config, files, runtime
from gpt2core.cli import options
from gpt2core.errors import UserError
from gpt2core.params.load import command_for
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
    rows = [cells for row in results.headlines(metrics) for cells in ((None, row) if row.stage else (row,))]
    options.print_table("gpt2core: headline metrics", ("stage", "metric", "value"), rows, n_text_columns=2)
    if of_splits := results.accuracy_rows(metrics["finetune_classify"]):
        options.print_table("Accuracy of models/classifier", ("messages", "before", "after"), of_splits)
    _print_title("A text by models/pretrained")
    click.echo(samples["text"])
    _print_title("Messages, by models/classifier")
    widths = {key: max(len(row[key]) for row in samples["messages"]) for key in ("predicted", "label")}
    for row in samples["messages"]:
        predicted, label = (f"{row[key]:<{width}}" for key, width in widths.items())
        click.echo(f"{predicted} (is {label})  {row['text']}")
    _print_title("Instructions, answered by models/instruct")
    for row in samples["answers"]:
        click.echo(f"> {row['instruction']}" + (f"\n> {row['input']}" if row["input"] else ""))
        click.echo(row["response"] + "\n")
    click.echo(f"All results on one page, with pictures: {command_for('report')}")
    mlflow = ".venv/bin/mlflow" if Path(".venv/bin/mlflow").exists() else "mlflow"
    click.echo(f"All runs and curves: {mlflow} ui --backend-store-uri sqlite:///mlflow.db")


@click.command(short_help="Write the results of the pipeline as one page.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write.  [default: report/index.html; with --markdown: standard output]",
)  # fmt: skip
@click.option("--markdown", is_flag=True, help="Compare with a Git revision instead, in GitHub's Markdown.")
@click.option(
    "--base", metavar="REV",
    help="With --markdown: the Git revision or DVC experiment to compare with.  "
    "[default: the merge base with the default branch, or HEAD]",
)  # fmt: skip
def report(out: Path | None, markdown: bool, base: str | None) -> None:
    """Write one self-contained HTML page with the results of the pipeline.

    It has curves, texts during training, a look inside the pretrained model, tables of results before and after
    fine-tuning, responses with their scores, and links to the MLflow runs. It opens offline and shows the files that
    are in the project now.

    With --markdown, write a comment for a pull request instead: the metrics, params, and plots in the working tree that
    differ from a Git revision, by `dvc metrics diff`, `dvc params diff`, and `dvc plots diff`.
    """
    if base is not None and not markdown:
        raise click.UsageError("--base needs --markdown")
    if markdown:
        from gpt2core.report.markdown import comparison_markdown

        text = comparison_markdown(config.project_root(), base)
        if out is None:
            click.echo(text, nl=False)
        else:
            files.write_text(out, text)
        return
    from gpt2core.report.pipeline import report_page

    out = out or Path("report/index.html")
    files.write_text(out, report_page(config.project_root()))
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")


def _print_title(title: str) -> None:
    click.secho(f"\n{title}", bold=True)


def _read(name: str) -> dict[str, Any]:
    path = Path("metrics") / f"{name}.json"
    if not path.exists():
        raise UserError(f"{path}: no such file; make it: dvc repro")
    return files.read_json(path)


def _samples() -> dict[str, Any]:
    """Return a generated text, three messages of different classes, and two instructions of the test set."""
    from gpt2core.checkpoint.model_dir import load_classifier
    from gpt2core.inference.classify import classify
    from gpt2core.tasks import labeled_texts

    texts = files.read_json("metrics/samples.json")
    messages = labeled_texts.read_table(Path("data/raw/classification.jsonl"))
    by_class = [[m for m in messages if m.label == label] for label in reversed(labeled_texts.classes(messages))]
    turns = (message for turn in itertools.zip_longest(*by_class) for message in turn if message)
    chosen = list(itertools.islice(turns, 3))
    model, tokenizer = load_classifier(Path("models/classifier"), device=runtime.device())
    predictions = classify(model, tokenizer, [m.text for m in chosen])
    answers = files.read_json("data/responses/test.json")[:2]
    return {
        "text": texts[-1]["text"],
        "messages": [
            {"label": m.label, "predicted": p.label, "text": m.text} for m, p in zip(chosen, predictions, strict=True)
        ],
        "answers": [{key: answer[key] for key in ("instruction", "input", "response")} for answer in answers],
    }
