"""Run the pipeline in a clean clone of HEAD; afterwards `git status` must print nothing.

python tools/clean_repro.py    # make clean-repro
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent


@click.command()
def main() -> None:
    """Rebuild everything in a clean clone of HEAD and check that no tracked file changed."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "gpt2core"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        environment = os.environ | {"PYTHONPATH": str(clone), "GPT2CORE_DEVICE": "cpu"}
        done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=clone, env=environment)
        if done.returncode:
            raise click.ClickException(f"dvc repro ended with {done.returncode}")
        status = ["git", "status", "--porcelain"]
        changed = subprocess.run(status, cwd=clone, capture_output=True, text=True, check=True).stdout
        if changed:
            raise click.ClickException(f"git status is not clean after dvc repro in a clean clone:\n{changed}")
    click.echo("git status is clean after dvc repro in a clean clone")


if __name__ == "__main__":
    main()
