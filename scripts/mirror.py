"""Fetch the public inputs into a folder for GPT2CORE_MIRROR: `python scripts/mirror.py FOLDER`.

All but OpenAI's weights and corpora of more than a gigabyte.
"""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.runtime import stage_main
from gpt2core.sources.download import fetch
from gpt2core.sources.registry import registry

LARGE_BYTES = 10**9


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Fetch into FOLDER/<asset>/<file>; what is there already is kept."""
    for asset in registry():
        is_large = sum(file.size_bytes or 0 for file in asset.files) > LARGE_BYTES
        if asset.origin == "public" and asset.kind != "openai" and not is_large:
            for file in asset.files:
                fetch(asset, file, folder / asset.name / file.name)
            click.echo(f"{folder / asset.name}: {asset.description} ({asset.license})")


if __name__ == "__main__":
    stage_main(main)
