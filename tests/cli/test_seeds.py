"""`gpt2core seeds` over the commits of a real repository, one seed per commit."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import subprocess
from pathlib import Path

import pytest
import yaml
from scipy import stats

from tests.cli.test_cli import Run, refused, run

__all__ = ["run"]  # a fixture
LOSSES = {1: 3.25, 2: 3.0, 3: 2.5}


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    root = tmp_path_factory.mktemp("project")

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.check_output(["git", *identity, *arguments], cwd=root, text=True).strip()

    git("init", "-q")
    (root / "metrics").mkdir()
    made = []
    for seed, loss in LOSSES.items():
        metrics = json.dumps({"val_loss": loss, "train_loss": loss / 2})
        (root / "metrics/pretrain.json").write_text(metrics)
        (root / "params.yaml").write_text(yaml.safe_dump({"seed": seed, "pretrain": {"lr": 0.1}}))
        md5 = hashlib.md5(metrics.encode()).hexdigest()
        stage = {
            "params": {"params.yaml": {"seed": seed, "pretrain": {"lr": 0.1}}},
            "outs": [{"path": "metrics/pretrain.json", "md5": md5}],
        }
        (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"pretrain": stage}}))
        git("add", "--all")
        git("commit", "-qm", f"seed {seed}")
        made.append(git("rev-parse", "HEAD"))
    return root, made


def test_it_shows_mean_deviation_and_interval_of_the_headlines(
    run: Run, commits: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, names = commits
    monkeypatch.setenv("DVC_ROOT", str(root))
    mean, deviation = statistics.mean(LOSSES.values()), statistics.stdev(LOSSES.values())
    low, high = stats.ttest_1samp(list(LOSSES.values()), 0).confidence_interval(0.95)
    ended = run("seeds", *names)
    assert (ended.code, ended.err) == (0, "")
    assert "seeds 1, 2, 3" in ended.out and "train_loss" not in ended.out
    (row,) = [line for line in ended.out.splitlines() if "pretrain.val_loss" in line]
    assert re.split(r"\s{2,}", row.strip()) == [
        "pretrain.val_loss", "3", f"{mean:.4g}", f"{deviation:.2g}", f"{low:.4g} to {high:.4g}",
    ]  # fmt: skip
    (group,) = json.loads(run("seeds", *names, "--all", "--json").out)
    figures = {figure["metric"]: figure["mean"] for figure in group["figures"]}
    assert figures == {"pretrain.val_loss": pytest.approx(mean), "pretrain.train_loss": pytest.approx(mean / 2)}
    (loss,) = [figure for figure in group["figures"] if figure["metric"] == "pretrain.val_loss"]
    assert (loss["ci_low"], loss["ci_high"]) == pytest.approx((low, high))
    assert loss["values"] == {str(seed): value for seed, value in LOSSES.items()}


def test_of_one_seed_it_says_how_to_make_more(
    run: Run, commits: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(commits[0]))
    refused(run("seeds", commits[1][0]), 1, "dvc exp run --queue -S 'seed=1,2,3'")
