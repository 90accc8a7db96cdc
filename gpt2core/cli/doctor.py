"""`gpt2core doctor`: checks of the machine and the project."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import click

from gpt2core import config
from gpt2core.cli import options
from gpt2core.log import shown

if TYPE_CHECKING:
    from gpt2core.doctor import Finding


@click.command(short_help="Check whether this machine can run params.yaml.")
@options.as_json
def doctor(as_json: bool) -> None:
    """Check Python, torch, the machine, params.yaml, Git, DVC, MLflow, the checkpoints, and the sources.

    Each finding names a remedy. Memory is estimated from the params. The exit code is 1 if a problem would stop a run.
    """
    options.require_extra("pipeline", "dvc", "mlflow", "psutil")
    from gpt2core.doctor import examine

    findings = []
    for finding in examine(config.project_root()):
        findings.append(finding)
        if not as_json:
            _print(finding)
    n_problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        options.print_json({"fit": n_problems == 0, "findings": rows})
    elif n_problems:
        click.echo(f"\n{n_problems} problem{'s' if n_problems > 1 else ''} that would stop a run")
    else:
        click.echo("\nfit to run: dvc repro")
    sys.exit(1 if n_problems else 0)


def _print(finding: Finding) -> None:
    click.echo(f"{finding.level:<8} {finding.area:<9} {shown(finding.what)}")
    for number, line in enumerate(finding.remedy.splitlines()):
        options.show(f"{'':<18} {'do: ' if number == 0 else '    '}{line}")
