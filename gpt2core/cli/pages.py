"""`gpt2core ui`, `gpt2core rate`: pages in the browser to try models and to rate responses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2core import config, files
from gpt2core.cli import options
from gpt2core.errors import UserError

if TYPE_CHECKING:
    from gpt2core.evaluation.rating.ratings import Responses

HOST = "127.0.0.1"


@click.command(short_help="Try the models on a page in the browser.")
@click.argument("directories", metavar="[DIR]...", nargs=-1, type=options.PATH)
@click.option(
    "--host", default=HOST, show_default=True,
    help="The address to serve. On another address than the default, everyone who reaches it can use the models.",
)  # fmt: skip
@options.port(7860)
@options.dtype
@options.open_browser
def ui(directories: tuple[Path, ...], host: str, port: int, dtype: str, open_browser: bool) -> None:
    """Serve a page to try the models: generate, classify, respond, look inside. Ctrl-C ends it.

    Each DIR is a model directory or a folder with model directories; the default is models/. The page loads nothing
    from other servers, and your texts stay on this machine.
    """
    options.require_extra("ui", "fastapi", "uvicorn")
    from gpt2core.ui.models import Models, find_models
    from gpt2core.ui.server import make_app
    from gpt2core.ui.serving import serve

    models = find_models(directories or (Path("models"),))
    lines = [f"{model.kind:<15} {model.name}" for model in models]
    serve(make_app(Models(models, dtype), host), host, port, lines, open_browser=open_browser)


@click.command(short_help="Rate responses blindly on a page in the browser; summarize the ratings.")
@click.argument("responses_file", metavar="RESPONSES", type=options.PATH)
@click.option(
    "--ratings", "ratings_file", type=options.PATH,
    help="The CSV file of the ratings. The default is RESPONSES.ratings.csv next to RESPONSES, or next to the DVC "
    "output that contains it, because DVC replaces outputs.",
)  # fmt: skip
@click.option("--model", "models", multiple=True, help="Only the responses under this key; may be repeated.")
@options.seed("the order of the texts")
@options.port(7861)
@options.open_browser
@click.option("--summary", is_flag=True, help="Print each model's means, and the agreement of raters and judges.")
@click.option(
    "--scores", "scores_file", type=options.PATH,
    help="With --summary: the judges' scores of the same entries, such as metrics/plots/judge_scores.csv; the default "
    "is to compare with chrF++.",
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

    RESPONSES is JSON (or CSV) of entries with instruction, input, output, and one or more keys that end with
    "response", such as data/responses/test.json. Raters enter a name and can continue later; they do not see which
    model wrote a text. Each answer is immediately written to the CSV file. --summary reads that file.
    """
    from gpt2core.evaluation.rating.ratings import Ratings, read_responses

    responses = read_responses(responses_file, models)
    ratings = Ratings(ratings_file or default_ratings_file(responses_file))
    by_rater = ratings.read()
    if summary:
        from gpt2core.evaluation.rating.statistics import summarize

        if not by_rater:
            raise UserError(f"{ratings.path}: no ratings yet; make some with: gpt2core rate {responses_file}")
        judges = _read_scores(scores_file, responses) if scores_file else _chrf(responses)
        statistics = summarize(responses, by_rater, judges, seed)
        (options.print_json if as_json else _print_summary)(statistics)
        return
    if scores_file or as_json:
        raise UserError("--scores and --json go with --summary")

    options.require_extra("ui", "fastapi", "uvicorn")
    from gpt2core.ui.rating import make_app
    from gpt2core.ui.serving import serve

    texts = responses.distinct()
    lines = [
        f"{len(texts)} texts to rate, of {', '.join(responses.by_model)}; ratings in {ratings.path}",
        *(f"{rater}: {len(scores.keys() & texts.keys())} started" for rater, scores in by_rater.items()),
    ]
    serve(make_app(responses, ratings, seed), HOST, port, lines, open_browser=open_browser)


def default_ratings_file(responses_file: Path) -> Path:
    """Return the ratings file next to the responses, or next to the DVC output that contains them.

    DVC deletes an output of the dvc.yaml above it before its stage runs.
    """
    path = responses_file.absolute()
    project = next((folder for folder in path.parents if (folder / "dvc.yaml").exists()), None)
    outs = [project / out for out in _outs(project / "dvc.yaml")] if project else []
    replaced = next((out for out in outs if path.is_relative_to(out)), None)
    if not replaced:
        return responses_file.with_name(f"{responses_file.stem}.ratings.csv")
    ratings_file = replaced.with_name(f"{replaced.stem}.ratings.csv")
    return ratings_file.relative_to(Path.cwd()) if ratings_file.is_relative_to(Path.cwd()) else ratings_file


def _outs(dvc_yaml: Path) -> list[str]:
    content = config.read_yaml(dvc_yaml) or {}
    stages = [stage.get("do", stage) for stage in content.get("stages", {}).values()]
    outs = [out for stage in stages for out in stage.get("outs", [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in outs]


def _chrf(responses: Responses) -> dict[str, dict[str, float]]:
    """Return chrF++ of every text that has a reference, by item."""
    from gpt2core.evaluation.judges.chrf import ChrfJudge

    texts = {item: text for item, text in responses.distinct().items() if text.reference.strip()}
    if not texts:
        return {}
    judge = ChrfJudge()
    scores = judge.score(list(texts.values()))
    return {judge.name: {item: score for item, score in zip(texts, scores, strict=True) if score is not None}}


def _read_scores(path: Path, responses: Responses) -> dict[str, dict[str, float]]:
    """Read judges' scores by item: `score` (and `base`, of base_response), and the columns after `nearest`."""
    header, cells_of_rows = files.read_csv(path)
    rows = [dict(zip(header, cells, strict=True)) for _, cells in cells_of_rows]
    first = next(iter(responses.by_model.values()))
    if not rows or len(rows) > len(first) or "score" not in rows[0]:
        raise UserError(f"{path}: must have a column 'score' and a row for each of the first entries of RESPONSES")
    judges: dict[str, dict[str, float]] = {}
    for column in rows[0]:
        if column in ("index", "echo", "nearest"):
            continue
        name, model = ("score", "base_response") if column == "base" else (column, "response")
        for number, row in enumerate(rows):
            if model not in responses.by_model or not row[column]:
                continue
            try:
                judges.setdefault(name, {})[responses.by_model[model][number].item] = float(row[column])
            except ValueError:
                raise UserError(f"{path}, row {number + 2}: {column}: {row[column]!r:.40} is no number") from None
    return judges


def _print_summary(statistics: Mapping[str, Any]) -> None:
    def cells(row: Mapping[str, Any], *keys: str) -> list[str]:
        return [*("" if row[key] is None else f"{row[key]:.2f}" for key in keys), str(row["n"])]

    raters = ", ".join(f"{rater} {n}" for rater, n in statistics["raters"].items())
    click.echo(f"{statistics['texts']} texts; rated in full: {raters}")
    options.print_table(
        "Means, 1 to 5, with 95% intervals",
        ("model", "question", "mean", "from", "to", "texts"),
        [
            (model, question, *cells(row, "mean", "ci_low", "ci_high"))
            for model, questions in statistics["models"].items()
            for question, row in questions.items()
        ],
        n_text_columns=2,
    )
    if statistics["agreement"]:
        options.print_table(
            "Agreement; kappa with quadratic weights",
            ("between", "question", "kappa", "Pearson", "Spearman", "Kendall", "texts"),
            [
                (" and ".join(row["between"]), row["question"], *cells(row, "kappa", "pearson", "spearman", "kendall"))
                for row in statistics["agreement"]
            ],
            n_text_columns=2,
        )
