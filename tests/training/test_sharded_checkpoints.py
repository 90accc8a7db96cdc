"""Checkpoints of a training that is sharded over two processes: each writes its part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTConfig
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.storage import LocalFolder
from tests.training.sharded_worker import KILL_STEP

ROOT = Path(__file__).parents[2]


def run(folder: Path, kill_step: int) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launcher, "-m", "tests.training.sharded_worker", str(folder), str(kill_step)], cwd=ROOT, text=True,
        capture_output=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1", "GPT2CORE_SAVE_INTERVAL_S": "0"},
    )  # fmt: skip


@pytest.mark.slow
def test_each_process_writes_its_part_and_continues_with_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    done = run(tmp_path, KILL_STEP)
    assert done.returncode != 0
    manifests = sorted(folder.glob("*.json"))
    assert [int(path.name.split(".")[0]) for path in manifests] == [KILL_STEP - 2, KILL_STEP - 1], done.stderr
    newest = json.loads(manifests[-1].read_text())
    whole = GPT(GPTConfig(vocab_size=61, n_positions=16, n_embd=18, n_layer=2, n_head=2))
    shapes = {name: list(p.shape) for name, p in whole.named_parameters()}
    shards = []
    for rank, shard in enumerate(newest["shards"]):
        path = folder / shard["name"]
        assert shard["name"].endswith(f".{rank}-of-2.safetensors")
        assert (files.sha256(path), path.stat().st_size) == (shard["sha256"], shard["bytes"])
        shards.append(safetensors.torch.load_file(path))
    for name, shape in shapes.items():
        assert newest["layout"][f"model.{name}"] == {"shape": shape, "placements": ["S(0)"]}
        rows = [shard[f"model.{name}"].shape[0] for shard in shards]
        assert sum(rows) == shape[0] and max(rows) <= shape[0] // 2 + 1, "a process has more than its part"
    with pytest.raises(UserError, match="has the shards of 2 processes, and 1 cannot continue it; start 2"):
        CheckpointManager(LocalFolder(folder)).newest()

    (folder / newest["shards"][1]["name"]).unlink()  # of the second process, and the first one's is complete
    done = run(tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert f"the checkpoint of step {KILL_STEP - 1} is damaged" in done.stderr
    assert f"training: resumed at step {KILL_STEP - 2} of 6" in done.stderr
    for rank in range(2):
        never, resumed = (
            safetensors.torch.load_file(tmp_path / f"{name}-{rank}.safetensors") for name in ("never", "resumed")
        )
        assert never.keys() == resumed.keys() == shapes.keys()
        assert all(torch.equal(never[name], resumed[name]) for name in never)
    names = [path.name for path in folder.iterdir() if int(path.name.split(".")[0]) < 5]
    assert names == [], "files of older checkpoints are left"
