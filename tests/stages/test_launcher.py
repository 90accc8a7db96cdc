"""A stage starts the processes of its param `launcher`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.stages.conftest import Project

LAUNCHER = "torchrun --standalone --nproc-per-node=2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sharding", "changes"),
    [("finetune-classify", "full", {"seeds": [1, 2]}), ("finetune-instruct", "none", {"trainable": "lora"})],
)
def test_the_launcher_of_a_stage_starts_its_processes(
    tiny_twins: tuple[Project, Project], tmp_path: Path, stage: str, sharding: str, changes: dict[str, Any]
) -> None:
    section = stage.replace("-", "_")
    projects = []
    for launcher in ("python", LAUNCHER):
        project = tiny_twins[1].copy_to(tmp_path / launcher.split()[0])
        project.env = project.env | {"OMP_NUM_THREADS": "1"}
        divided = {"launcher": launcher, "sharding": "none" if launcher == "python" else sharding}
        params = {f"{section}.{key}": value for key, value in ({"max_steps": 6} | changes | divided).items()}
        project.set_params({"numerics": "native"} | params)
        said = project.dvc("repro", "--single-item", stage, timeout_s=200).output
        assert f"> python -m stages.{section}" in said
        projects.append(project)
    two = projects[1]
    # `launcher` is among the stage's params: with another number of processes, it runs again.
    assert two.lock()[stage]["params"]["params.yaml"][section]["launcher"] == LAUNCHER
    theirs, ours = (json.loads((project.root / f"metrics/{section}.json").read_text()) for project in projects)
    assert ours.keys() == theirs.keys()
    losses = [key for key in theirs if key.endswith("loss")]
    assert [ours[key] for key in losses] == pytest.approx([theirs[key] for key in losses], rel=1e-3)
    made = [{path.relative_to(p.root) for path in (p.root / "models").rglob("*")} for p in projects]
    assert made[0] == made[1]


@pytest.mark.slow
def test_a_launcher_that_is_not_installed(tiny_twins: tuple[Project, Project], tmp_path: Path) -> None:
    project = tiny_twins[1].copy_to(tmp_path / "project")
    project.set_params({"numerics": "native", "finetune_classify.launcher": "no-such-srun torchrun"})
    done = project.python("-m", "stages.finetune_classify", check=False, timeout_s=60)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "error: launcher: no-such-srun is not installed on this machine; take torchrun, or python"
    )
