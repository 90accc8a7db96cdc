"""`gpt2core sync-mlflow`"""

from __future__ import annotations

import dataclasses

import click

from gpt2core import config
from gpt2core.cli import options


@click.command(short_help="Fill in what MLflow lacks.")
@click.argument("names", metavar="[EXPERIMENT|REVISION]...", nargs=-1)
@options.as_json
def sync_mlflow(names: tuple[str, ...], as_json: bool) -> None:
    """Fill in what MLflow lacks, from Git, dvc.lock and metrics/.

    Of the experiments or Git revisions named; without a name, of the workspace, HEAD and every experiment. A run that
    broke off when the tracking server went away is completed. The workspace's models are logged and registered as far
    as `mlflow` of params.yaml says. What MLflow has is left alone.
    """
    from gpt2core.tracking.sync import sync

    shown = sync(config.project_root(), names)
    if as_json:
        options.print_json([dataclasses.asdict(synced) for synced in shown])
        return
    for synced in shown:
        click.echo(f"{synced.name}: {', '.join(synced.done) or 'nothing to do'}")
    if not shown:
        click.echo("no results to show; make some: dvc repro")
