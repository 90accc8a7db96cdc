"""What dvc.yaml says of outputs: no picture, and nothing about the machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PICTURES = {".svg", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf", ".html"}


def outputs(stage: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of a stage's outs, metrics, and plots."""
    stage = stage.get("do", stage)
    for kind in ("outs", "metrics", "plots"):
        for out in stage.get(kind, ()):
            yield out if isinstance(out, str) else next(iter(out))


@pytest.mark.parametrize("name", DVC["stages"])
def test_no_output_is_a_picture(name: str) -> None:
    paths = [*outputs(DVC["stages"][name])]
    assert paths
    assert [path for path in paths if Path(path).suffix.lower() in PICTURES] == []


def test_git_keeps_exactly_the_outputs_that_dvc_does_not_cache() -> None:
    """A picture, or a file that says which machine ran a stage, would be one more."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "metrics"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout  # fmt: skip
    kept = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    assert kept == {path for stage in DVC["stages"].values() for path in outputs(stage) if path.startswith("metrics/")}
