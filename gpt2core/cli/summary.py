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

    The table names the strongest baseline of the test accuracy; --json has its metric key in "strongest_baseline". A
    stage that has not run yet is named, and its results are left out.
    """
    metrics, missing = _read_metrics()
    samples = _samples()
    if as_json:
        strongest = results.strongest_baseline(metrics.get("finetune_classify", {}))
        options.print_json({"metrics": metrics, "missing": missing, "strongest_baseline": strongest, **samples})
        return
    rows = [cells for row in results.headlines(metrics) for cells in ((None, row) if row.stage else (row,))]
    options.print_table("gpt2core: headline metrics", ("stage", "metric", "value"), rows, n_text_columns=2)
    if of_splits := results.accuracy_rows(metrics.get("finetune_classify", {})):
        options.print_table("Accuracy of models/classifier", ("messages", "before", "after"), of_splits)
    if samples["text"] is not None:
        _print_title("A text by models/pretrained")
        options.show(samples["text"])
    if samples["messages"]:
        _print_title("Messages, by models/classifier")
        _print_messages(samples["messages"])
    if samples["answers"]:
        _print_title("Instructions, answered by models/instruct")
        options.show("\n\n".join(map(_answer, samples["answers"])))
    if missing:
        click.echo(f"\nNot run yet: {', '.join(missing)}. Run them: dvc repro")
    click.echo(f"\nAll results on one page, with pictures: {command_for('report')}")
    mlflow = ".venv/bin/mlflow" if Path(".venv/bin/mlflow").exists() else "mlflow"
    click.echo(f"All runs and curves: {mlflow} ui --backend-store-uri sqlite:///mlflow.db")


def _answer(row: dict[str, str]) -> str:
    lines = [f"> {row['instruction']}", *([f"> {row['input']}"] if row["input"] else []), row["response"]]
    return "\n".join(lines)


def _print_messages(messages: list[dict[str, str]]) -> None:
    widths = {key: max(len(row[key]) for row in messages) for key in ("predicted", "label")}
    for row in messages:
        predicted, label = (f"{row[key]:<{width}}" for key, width in widths.items())
        options.show(f"{predicted} (is {label})  {row['text']}")


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
        options.require_extra("pipeline", "dvc")
        from gpt2core.report.markdown import comparison_markdown

        text = comparison_markdown(config.project_root(), base)
        if out is None:
            click.echo(text, nl=False)
        else:
            files.write_text(out, text)
        return
    options.require_extra("pipeline", "dvc", "mlflow", "matplotlib", "pyarrow")
    from gpt2core.report.pipeline import report_page

    out = out or Path("report/index.html")
    files.write_text(out, report_page(config.project_root()))
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")


def _print_title(title: str) -> None:
    click.secho(f"\n{title}", bold=True)


def _read_metrics() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the metrics of the stages that have run, and the names of the others."""
    paths = {name: Path("metrics") / f"{name}.json" for name in results.NAMES}
    metrics = {name: files.read_json(path) for name, path in paths.items() if path.exists()}
    if not metrics:
        raise UserError("metrics/: no stage has written its results yet; run the pipeline: dvc repro")
    return metrics, [name.replace("_", "-") for name in paths if name not in metrics]


def _samples() -> dict[str, Any]:
    """Return a generated text, three classified messages, and two responses; without their files, None or none."""
    texts, answers = Path("metrics/samples.json"), Path("data/responses/test.json")
    keys = ("instruction", "input", "response")
    return {
        "text": files.read_json(texts)[-1]["text"] if texts.exists() else None,
        "messages": _classified_messages(Path("models/classifier"), Path("data/raw/classification.jsonl")),
        "answers": [{key: row[key] for key in keys} for row in files.read_json(answers)[:2]]
        if answers.exists()
        else [],
    }


def _classified_messages(model_dir: Path, path: Path) -> list[dict[str, str]]:
    """Return three messages of different classes, with their labels and those that the classifier predicts."""
    from gpt2core.checkpoint.model_dir import load_classifier
    from gpt2core.inference.classify import classify
    from gpt2core.tasks import labeled_texts

    if not (model_dir.exists() and path.exists()):
        return []
    messages = labeled_texts.read_table(path)
    by_class = [[m for m in messages if m.label == label] for label in reversed(labeled_texts.classes(messages))]
    turns = (message for turn in itertools.zip_longest(*by_class) for message in turn if message)
    chosen = list(itertools.islice(turns, 3))
    model, tokenizer = load_classifier(model_dir, device=runtime.device())
    predictions = classify(model, tokenizer, [m.text for m in chosen])
    return [{"label": m.label, "predicted": p.label, "text": m.text} for m, p in zip(chosen, predictions, strict=True)]
