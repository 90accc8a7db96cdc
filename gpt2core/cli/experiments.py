"""`gpt2core seeds`, `gpt2core sync-mlflow`: results of experiments and Git revisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from gpt2core import config
from gpt2core.cli import options
from gpt2core.errors import UserError
from gpt2core.report import results

if TYPE_CHECKING:
    from gpt2core.tracking.seeds import SeedGroup

names_argument = click.argument("names", metavar="[EXPERIMENT|REVISION]...", nargs=-1)


@click.command(short_help="Show mean, standard deviation, and 95% interval over seeds.")
@names_argument
@click.option("--all", "all_metrics", is_flag=True, help="Every number in metrics/, not only the headline metrics.")
@options.as_json
def seeds(names: tuple[str, ...], all_metrics: bool, as_json: bool) -> None:
    """Show the mean of each metric over finished experiments that differ in `seed` only.

    With it: the sample standard deviation, and the 95% interval of the mean (Student's t with n - 1 degrees of
    freedom). --json also has the single values.

    Name experiments or Git revisions. Without a name, the command takes the workspace, HEAD, and every experiment. To
    create experiments: dvc exp run --queue -S 'seed=1,2,3' && dvc exp run --run-all
    """
    options.require_extra("pipeline", "dvc", "mlflow", "scipy")
    from gpt2core.tracking import revisions
    from gpt2core.tracking.seeds import seed_groups

    root = config.project_root()
    groups = seed_groups(revisions.select(root, names))
    if not groups:
        raise UserError(
            "no two experiments differ in seed only; create some: "
            "dvc exp run --queue -S 'seed=1,2,3' && dvc exp run --run-all"
        )
    if not all_metrics:
        groups = [with_headlines(group) for group in groups]
    if as_json:
        options.print_json([dataclasses.asdict(group) for group in groups])
        return
    print_groups(groups)


def with_headlines(group: SeedGroup) -> SeedGroup:
    """Return the group with the headline metrics only."""
    headlines = {f"{name.replace('_', '-')}.{key}" for name, key, *_ in results.ROWS}
    return dataclasses.replace(group, figures=[figure for figure in group.figures if figure.metric in headlines])


def print_groups(groups: Sequence[SeedGroup]) -> None:
    """Print a table for each group."""
    for group in groups:
        params = ", ".join(f"{name}={value}" for name, value in group.params.items())
        title = f"seeds {', '.join(map(str, group.seeds))}; {params}".rstrip("; ")
        rows = [
            (
                row.metric,
                str(row.n),
                f"{row.mean:.4g}",
                f"{row.deviation:.2g}",
                f"{row.ci_low:.4g} to {row.ci_high:.4g}",
            )
            for row in group.figures
        ]
        options.print_table(title, ("metric", "n", "mean", "deviation", "95% interval"), rows)


@click.command(short_help="Add missing results to MLflow.")
@names_argument
@options.as_json
def sync_mlflow(names: tuple[str, ...], as_json: bool) -> None:
    """Add missing results to MLflow, from Git, dvc.lock, and metrics/.

    Name experiments or Git revisions; without a name, the command takes the workspace, HEAD, and every experiment that
    an earlier call has not completed. A run is completed if the tracking server became unreachable. The workspace's
    models are logged and registered as `mlflow` in params.yaml says. Existing data in MLflow is not changed. A run that
    you delete there comes back only if you name its experiment.
    """
    options.require_extra("pipeline", "dvc", "mlflow")
    from gpt2core.tracking.sync import sync

    results = sync(config.project_root(), names)
    if as_json:
        options.print_json([dataclasses.asdict(synced) for synced in results])
        return
    for synced in results:
        click.echo(f"{synced.name}: {', '.join(synced.done) or 'nothing to do'}")
    if not results:
        click.echo("no results; make some: dvc repro")
