"""`gpt2core evaluate`: benchmarks of lm-eval."""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.cli import options


@click.command(short_help="Run benchmarks: lm-eval's tasks, or your own.")
@options.model_dir
@click.option("--tasks", required=True, help="Names in lm-eval, such as mmlu,hellaswag,lambada_openai, or task files.")
@click.option(
    "--include", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A folder with further task files."
)
@click.option("--mmlu-csv", type=options.PATH, help="Read the task mmlu from this folder: test/*.csv, dev/*.csv.")
@click.option(
    "--num-fewshot", type=click.IntRange(min=0),
    help="Solved examples before each question; the default is the task's own, otherwise none.",
)  # fmt: skip
@options.limit
@click.option("--batch-size", type=options.POSITIVE, default=16, show_default=True, help="Texts per forward pass.")
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

    The results equal those of lm-eval's own `hf` model on the same directory. lm-eval downloads a task's data when it
    is first used; a task file (YAML) with local data, and MMLU's CSV, need no network. `lm-eval ls tasks` lists the
    names. --limit is per task.
    """
    options.require_extra("eval", "lm_eval")
    from gpt2core.checkpoint.cluster import batches_of_directory
    from gpt2core.checkpoint.decoding import load_for_decoding
    from gpt2core.evaluation.harness import evaluate as evaluate_tasks

    model, tokenizer = load_for_decoding(model_dir, dtype)
    names = [name for name in (part.strip() for part in tasks.split(",")) if name]
    with batches_of_directory(model_dir, model, tokenizer, dtype) as batches:
        results = evaluate_tasks(
            batches, names,
            include=include, mmlu_csv=mmlu_csv, num_fewshot=num_fewshot, limit=limit, batch_size=batch_size,
        )  # fmt: skip
    if as_json:
        options.print_json({"model": str(model_dir), "tasks": results})
        return
    rows = []
    for name, task in results.items():
        shots = "" if task["num_fewshot"] is None else str(task["num_fewshot"])
        for metric, row in task["metrics"].items():
            numbers = ("" if row[key] is None else f"{row[key]:.4g}" for key in ("value", "stderr"))
            rows.append((name, metric, *numbers, str(task["samples"]), shots))
    options.print_table("", ("task", "metric", "value", "± error", "items", "shots"), rows, n_text_columns=2)
