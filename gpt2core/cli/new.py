"""`gpt2core new`: a project of the user's own."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import click


@click.command(short_help="Start a project with your own data.")
@click.argument("folder", metavar="NAME", type=click.Path(path_type=Path))
def new(folder: Path) -> None:
    """Create the folder NAME with the pipeline, its params, example data to replace with yours, and a README.

    NAME is a folder's name or a path; it must not exist, or be empty. The folder is a Git repository with DVC set up.
    Its stages run the gpt2core that is installed here.
    """
    from gpt2core.project.create import create

    is_committed = create(folder)
    commands = re.findall(r"```bash\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    click.echo(f"{folder}: created, with example data in data/own; next, as its README says:")
    for line in (f"cd {shlex.quote(str(folder))}", *_activation(), *commands.splitlines()):
        click.echo(f"  {line}")
    if not is_committed:
        click.echo('Git knows no user.name and user.email yet; set them, then: git commit -m "Start"')


def _activation() -> list[str]:
    """Return the command that activates this environment, unless its `python` and `dvc` are already the first."""
    here = Path(sys.executable).parent
    found = [shutil.which(name) for name in ("python", "dvc", "gpt2core")]
    is_active = all(path and Path(path).parent.resolve() == here.resolve() for path in found)
    return [] if is_active or not (here / "activate").exists() else [f"source {shlex.quote(str(here / 'activate'))}"]
