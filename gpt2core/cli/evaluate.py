"""`gpt2core evaluate`"""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.cli import options


@click.command(short_help="Benchmarks: lm-eval's tasks, or your own.")
@options.model_dir
@click.option("--tasks", required=True, help="Names of lm-eval, such as mmlu,hellaswag,lambada_openai, or task files.")
@click.option(
    "--include", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A folder of more task files."
)
@click.option(
    "--mmlu-csv", type=click.Path(path_type=Path), help="Read the task mmlu from this folder: test/*.csv, dev/*.csv."
)
@click.option(
    "--num-fewshot", type=click.IntRange(min=0),
    help="Solved examples before each question; the default is the task's own, else none.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many items of each task.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Texts computed at once.")
@options.dtype
@options.as_json
def evaluate(
    model_dir: Path,
    tasks: str,
    include: Path | None,
    mmlu_csv: Path | None,
    num_fewshot: int | None,
    limit: int | None,
    batch_size: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Evaluate the language model in MODEL_DIR by lm-eval's tasks, with its prompts and metrics.

    The figures are those of lm-eval's own `hf` model on the same directory. lm-eval fetches a task's data when it is
    first used; a task file (YAML) over local data, and MMLU's CSV, need no network. `lm-eval ls tasks` lists the names.
    """
    options.needs("evaluate", "lm_eval")
    from gpt2core.evaluation.harness import evaluate as by_harness

    model, tokenizer = options.load_language_model(model_dir, dtype)
    names = [name for name in (part.strip() for part in tasks.split(",")) if name]
    found = by_harness(
        model, tokenizer, names,
        include=include, mmlu_csv=mmlu_csv, num_fewshot=num_fewshot, limit=limit, batch_size=batch_size,
    )  # fmt: skip
    if as_json:
        options.print_json({"model": str(model_dir), "tasks": found})
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("task")
    table.add_column("metric")
    for column in ("value", "± error", "items", "shots"):
        table.add_column(column, justify="right")
    for name, task in found.items():
        for metric, figures in task["metrics"].items():
            shown = ["" if figures[key] is None else f"{figures[key]:.4g}" for key in ("value", "stderr")]
            shots = "" if task["num_fewshot"] is None else str(task["num_fewshot"])
            table.add_row(name, metric, *shown, str(task["samples"]), shots)
    Console(highlight=False, markup=False, emoji=False).print(table)
