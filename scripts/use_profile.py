"""Copy a profile over params.yaml: `python scripts/use_profile.py NAME [--force]`. An edited params.yaml is kept."""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core import files
from gpt2core.config import load_params
from gpt2core.errors import UserError
from gpt2core.runtime import stage_main


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Overwrite a params.yaml that is no profile's.")
def main(name: str, force: bool) -> None:
    """Copy profiles/NAME.yaml over params.yaml."""
    profiles = {path.stem: path for path in sorted(Path("profiles").glob("*.yaml"))}
    if name not in profiles:
        raise UserError(f"NAME={name}: no such profile; there are: {', '.join(profiles)} (make profile NAME=tiny)")
    params = Path("params.yaml")
    known = {path.read_bytes() for path in profiles.values()}
    if params.exists() and params.read_bytes() not in known and not force:
        raise UserError(
            "params.yaml was edited, and this would overwrite it: save it as profiles/MINE.yaml, "
            f"or: make profile NAME={name} FORCE=1"
        )
    load_params(profiles[name])
    files.write_text(params, files.read_text(profiles[name]))
    click.echo(f"params.yaml is now the profile {name}; run it: make repro")


if __name__ == "__main__":
    stage_main(lambda: main(standalone_mode=True))
