"""`gpt2core sync-mlflow`: missing runs and models in MLflow."""

from __future__ import annotations

import dataclasses

import click

from gpt2core import config
from gpt2core.cli import options


@click.command(short_help="Add missing results to MLflow.")
@click.argument("names", metavar="[EXPERIMENT|REVISION]...", nargs=-1)
@options.as_json
def sync_mlflow(names: tuple[str, ...], as_json: bool) -> None:
    """Add missing results to MLflow, from Git, dvc.lock, and metrics/.

    Name experiments or Git revisions; without a name, the command takes the workspace, HEAD, and every experiment. A
    run is completed if the tracking server became unreachable. The workspace's models are logged and registered as
    `mlflow` in params.yaml says. Existing data in MLflow is not changed.
    """
    from gpt2core.tracking.sync import sync

    results = sync(config.project_root(), names)
    if as_json:
        options.print_json([dataclasses.asdict(synced) for synced in results])
        return
    for synced in results:
        click.echo(f"{synced.name}: {', '.join(synced.done) or 'nothing to do'}")
    if not results:
        click.echo("no results; make some: dvc repro")
