"""Seeds of both fine-tunings, one after another in this process, and at the same time on Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MODELS = ("classifier", "instruct", "adapter")


def trained(root: Path, **variables: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What both fine-tunings return and log, and the bytes of their models."""
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "from tests.training.seeds_worker import main; main()"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(ROOT), "GPT2CORE_PROCESSES": "2"} | variables,
        stdout=subprocess.PIPE, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0
    models = {f"{name}/{path.name}": path.read_bytes() for name in MODELS for path in (root / name).iterdir()}
    return json.loads(done.stdout.splitlines()[-1]), models


@pytest.mark.slow
def test_seeds_on_ray_give_the_same_results_metrics_and_models(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray: make peers")
    here, models = trained(tmp_path / "here")
    on_ray, models_of_ray = trained(tmp_path / "ray", GPT2CORE_RAY="local")
    assert on_ray == here and models_of_ray == models
    assert len(here["results"]) == 4 and here["results"][0] != here["results"][1]
    assert len(here["logged"]) > 10
    assert {path.name for path in (tmp_path / "ray" / "checkpoints").iterdir()} == {"seed-1", "seed-2"}
