"""`gpt2core seeds`"""

from __future__ import annotations

import dataclasses

import click
from rich.console import Console
from rich.table import Table

from gpt2core import config
from gpt2core.cli import options
from gpt2core.errors import UserError
from gpt2core.report import results


@click.command(short_help="Mean and deviation over seeds.")
@click.argument("names", metavar="[EXPERIMENT|REVISION]...", nargs=-1)
@click.option("--all", "all_metrics", is_flag=True, help="Every number of metrics/, not the headlines alone.")
@options.as_json
def seeds(names: tuple[str, ...], all_metrics: bool, as_json: bool) -> None:
    """Mean and standard deviation of each figure over finished experiments that differ in `seed` alone.

    Of the experiments or Git revisions named; without a name, of the workspace, HEAD and every experiment. To make
    some: dvc exp run --queue -S 'seed=1,2,3' && dvc exp run --run-all
    """
    from gpt2core.track import targets
    from gpt2core.track.seeds import over_seeds

    root = config.project_root()
    groups = over_seeds([targets.named(root, name) for name in names] or targets.all_of(root))
    if not groups:
        raise UserError(
            "no two experiments differ in seed alone; make some: "
            "dvc exp run --queue -S 'seed=1,2,3' && dvc exp run --run-all"
        )
    if not all_metrics:
        headlines = {f"{name.replace('_', '-')}.{key}" for name, key, *_ in results.ROWS}
        groups = [
            dataclasses.replace(group, figures=[f for f in group.figures if f.metric in headlines]) for group in groups
        ]
    if as_json:
        options.print_json([dataclasses.asdict(group) for group in groups])
        return
    console = Console(highlight=False)
    for group in groups:
        params = ", ".join(f"{name}={value}" for name, value in group.params.items())
        table = Table(title=f"seeds {', '.join(map(str, group.seeds))}; {params}".rstrip("; "), title_justify="left")
        table.add_column("metric")
        for column in ("n", "mean", "deviation"):
            table.add_column(column, justify="right")
        for figure in group.figures:
            table.add_row(figure.metric, str(figure.n), f"{figure.mean:.4g}", f"{figure.deviation:.2g}")
        console.print(table)
