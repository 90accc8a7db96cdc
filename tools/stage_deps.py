"""Write the code that each stage depends on into dvc.yaml: its import closure without observers, as a minimal cover.

python tools/stage_deps.py           # make deps
python tools/stage_deps.py --check   # only compare; the tests do this
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gpt2core.stage_code import PACKAGES, stage_files  # noqa: E402

PIPELINE = ROOT / "dvc.yaml"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if dvc.yaml is out of date.")
def main(check: bool) -> None:
    """Write the code that each stage depends on into dvc.yaml."""
    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    pipeline = yaml.load(PIPELINE.read_text(encoding="utf-8"))
    changed = [name for name, stage in pipeline["stages"].items() if update(name, stage.get("do", stage))]
    if check and changed:
        raise click.ClickException(f"dvc.yaml: outdated code dependencies of {', '.join(changed)}; run make deps")
    if changed:
        with PIPELINE.open("w", encoding="utf-8") as file:
            yaml.dump(pipeline, file)
    click.echo("dvc.yaml: " + (f"updated {', '.join(changed)}" if changed else "up to date"))


def update(name: str, stage: dict[str, Any]) -> bool:
    """Replace the code in a stage's deps; return whether that changed them."""
    deps = stage["deps"]
    inputs = [dep for dep in deps if not is_code(dep)]
    new = [*code_deps(name), *inputs]
    if list(deps) == new:
        return False
    deps[:] = new
    return True


def is_code(dep: str) -> bool:
    """Return whether a dependency is code of this project."""
    return Path(dep).parts[0] in PACKAGES


def code_deps(stage: str) -> list[str]:
    """Return the minimal cover of a stage's code: folders of which it reaches every file, and single files."""
    reached = {ROOT / path for path in stage_files(stage)}
    return [path.relative_to(ROOT).as_posix() for top in PACKAGES for path in cover(ROOT / top, reached)]


def cover(folder: Path, reached: set[Path]) -> list[Path]:
    """Return the folder if all of its files are reached; else the cover of each subfolder, and the reached files."""
    if files_in(folder) <= reached:
        return [folder]
    covered: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and files_in(path) & reached:
            covered += cover(path, reached)
        elif path in reached:
            covered.append(path)
    return covered


def files_in(folder: Path) -> set[Path]:
    """Return all files below a folder that DVC hashes."""
    files: Iterable[Path] = folder.rglob("*")
    return {path for path in files if path.is_file() and "__pycache__" not in path.parts}


if __name__ == "__main__":
    main()
