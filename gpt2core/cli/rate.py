"""`gpt2core rate`"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2core import config, files
from gpt2core.cli import options
from gpt2core.errors import UserError

if TYPE_CHECKING:
    from gpt2core.evaluation.rating.ratings import Responses

HOST = "127.0.0.1"


@click.command(short_help="Rate responses blindly on a page in the browser; sum the ratings up.")
@click.argument("responses_file", metavar="RESPONSES", type=click.Path(path_type=Path))
@click.option(
    "--ratings", "ratings_file", type=click.Path(path_type=Path),
    help="The CSV that keeps them. The default is RESPONSES.ratings.csv beside RESPONSES, or beside the output of the "
    "pipeline in which that lies, since DVC replaces those.",
)  # fmt: skip
@click.option("--model", "models", multiple=True, help="Only the responses under this key; may be repeated.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order.")
@click.option("--port", type=click.IntRange(0, 65535), default=7861, show_default=True, help="0 takes a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Also open the page in the browser.")
@click.option("--summary", is_flag=True, help="No page: print each model's means, and how far raters and judges agree.")
@click.option(
    "--scores", "scores_file", type=click.Path(path_type=Path),
    help="With --summary: the judges' scores of the same entries, as metrics/plots/judge_scores.csv; without it they "
    "are compared with chrF++.",
)  # fmt: skip
@options.as_json
def rate(
    responses_file: Path,
    ratings_file: Path | None,
    models: tuple[str, ...],
    seed: int,
    port: int,
    open_browser: bool,
    summary: bool,
    scores_file: Path | None,
    as_json: bool,
) -> None:
    """Serve a page on this machine to rate RESPONSES, correctness, helpfulness and safety from 1 to 5. Ctrl-C ends it.

    RESPONSES is JSON (or CSV) of entries with instruction, input, output and one or more keys that end with "response",
    such as data/responses/test.json. Raters give a name and go on where they stopped; who wrote a text is not shown.
    Each answer is written to the ratings' CSV at once. --summary reads that file and tells what it holds.
    """
    from gpt2core.evaluation.rating.ratings import Ratings, read_responses

    responses = read_responses(responses_file, models)
    ratings = Ratings(ratings_file or default_ratings_file(responses_file))
    given = ratings.read()
    if summary:
        from gpt2core.evaluation.rating.statistics import summarize

        if not given:
            raise UserError(f"{ratings.path}: no ratings yet; make some with: gpt2core rate {responses_file}")
        judges = _scores(scores_file, responses) if scores_file else _chrf(responses)
        found = summarize(responses, given, judges, seed)
        if as_json:
            options.print_json(found)
        else:
            _print_summary(found)
        return
    if scores_file or as_json:
        raise UserError("--scores and --json go with --summary")

    options.needs("ui", "fastapi", "uvicorn")
    from gpt2core.ui.rating import make_app
    from gpt2core.ui.serving import serve

    def on_ready(address: str) -> None:
        texts = responses.distinct()
        click.echo(f"{len(texts)} texts to rate, of {', '.join(responses.by_model)}; ratings in {ratings.path}")
        for rater, rated in given.items():
            click.echo(f"{rater}: {len(rated.keys() & texts.keys())} begun")
        click.echo(f"{address}  (Ctrl-C ends it)")
        if open_browser:
            click.launch(address)

    serve(make_app(responses, ratings, seed), HOST, port, on_ready)


def default_ratings_file(responses_file: Path) -> Path:
    """Beside the responses; where these lie in an out of the dvc.yaml above them, beside that out, which DVC deletes
    before its stage runs."""
    path = responses_file.absolute()
    project = next((folder for folder in path.parents if (folder / "dvc.yaml").exists()), None)
    outs = [project / out for out in _outs(project / "dvc.yaml")] if project else []
    replaced = next((out for out in outs if path.is_relative_to(out)), None)
    if not replaced:
        return responses_file.with_name(f"{responses_file.stem}.ratings.csv")
    kept = replaced.with_name(f"{replaced.stem}.ratings.csv")
    return kept.relative_to(Path.cwd()) if kept.is_relative_to(Path.cwd()) else kept


def _outs(dvc_yaml: Path) -> list[str]:
    content = config.read_yaml(dvc_yaml) or {}
    stages = [stage.get("do", stage) for stage in content.get("stages", {}).values()]
    outs = [out for stage in stages for out in stage.get("outs", [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in outs]


def _chrf(responses: Responses) -> dict[str, dict[str, float]]:
    """chrF++ of every text that has a reference, by item."""
    from gpt2core.evaluation.judges import Item
    from gpt2core.evaluation.judges.chrf import ChrfJudge

    texts = {item: text for item, text in responses.distinct().items() if text.reference.strip()}
    if not texts:
        return {}
    judge = ChrfJudge()
    scores = judge.score([Item(t.instruction, t.input, t.reference, t.response) for t in texts.values()])
    return {judge.name: {item: score for item, score in zip(texts, scores, strict=True) if score is not None}}


def _scores(path: Path, responses: Responses) -> dict[str, dict[str, float]]:
    """Judges' scores by item: the columns `score` (with `base`, of base_response) and those behind `nearest`."""
    import csv
    import io

    rows = list(csv.DictReader(io.StringIO(files.read_text(path), newline="")))
    first = next(iter(responses.by_model.values()))
    if not rows or len(rows) > len(first) or "score" not in rows[0]:
        raise UserError(f"{path}: must have a column 'score' and a row for each of the first entries of RESPONSES")
    judges: dict[str, dict[str, float]] = {}
    for column in rows[0]:
        if column in ("index", "echo", "nearest", None):
            continue
        name, model = ("score", "base_response") if column == "base" else (column, "response")
        for number, row in enumerate(rows):
            said = responses.by_model.get(model)
            if said is None or not row[column]:
                continue
            try:
                judges.setdefault(name, {})[said[number].item] = float(row[column])
            except ValueError:
                raise UserError(f"{path}, row {number + 2}: {column}: {row[column]!r:.40} is no number") from None
    return judges


def _print_summary(found: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)  # a rater's name is no markup

    def show(title: str, columns: Sequence[str], n_texts: int, rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i < n_texts else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rated = ", ".join(f"{rater} {n}" for rater, n in found["raters"].items())
    click.echo(f"{found['texts']} texts; rated in full: {rated}")
    show(
        "Means, 1 to 5, with 95% intervals",
        ("model", "question", "mean", "from", "to", "texts"),
        2,
        [
            (model, question, *(number(figures[key]) for key in ("mean", "ci_low", "ci_high")), str(figures["n"]))
            for model, questions in found["models"].items()
            for question, figures in questions.items()
        ],
    )
    if found["agreement"]:
        keys = ("kappa", "pearson", "spearman", "kendall")
        show(
            "Agreement; kappa with quadratic weights",
            ("between", "question", "kappa", "Pearson", "Spearman", "Kendall", "texts"),
            2,
            [
                (" and ".join(row["between"]), row["question"], *(number(row[key]) for key in keys), str(row["n"]))
                for row in found["agreement"]
            ],
        )
