"""`gpt2core params`, `gpt2core profile`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Check params.yaml, or update an older one.")
@click.argument("path", metavar="[FILE]", default="params.yaml", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; fail if the file has errors or lacks keys.")
def params(path: Path, check: bool) -> None:
    """Update params.yaml, or another params file or profile, to the keys of this version.

    Renames keys, adds missing ones with their defaults, and removes obsolete ones, and prints a line for each. Values
    and comments stay. The old file is kept as FILE.old. The result is checked. In a
    project of `gpt2core new`, code.yaml is updated as well.
    """
    from gpt2core.params import code, load_params
    from gpt2core.params.update import update_file

    changes = [] if check else update_file(path)
    code_changes = [] if check else code.update(path.with_name(code.FILE))
    for change in (*changes, *code_changes):
        click.echo(change)
    load_params(path)
    if not check:
        click.echo(f"{path}: updated; the old file is {path.name}.old" if changes else f"{path}: up to date")


@click.command(short_help="Write params.yaml from a profile.")
@click.argument("name")
@click.option("--force", is_flag=True, help="Overwrite a params.yaml that has edits.")
def profile(name: str, force: bool) -> None:
    """Write params.yaml from profiles/NAME.yaml. An edited params.yaml is kept."""
    from gpt2core.params.profiles import write_profile

    name = write_profile(name, force=force)
    click.echo(f"params.yaml is now the profile {name}; run it: make repro")
