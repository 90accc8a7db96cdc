"""The curves of docs/scaling.md: every point does the amount of work that it names."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import growth, growth_points
from benchmarks.machine import ROOT
from gpt2core.corpus.shards import open_shard
from gpt2core.tracking import revisions
from gpt2core.tracking.seeds import seed_groups
from tools.docs import growth as page


@pytest.mark.slow
def test_the_smallest_points_are_measured_and_kept(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "growth.json"
    for name, most in (("tokens", 10**5), ("files", 100), ("entries", 10)):
        growth.main([str(mirror), "--only", name, "--most", str(most), "--record", str(record)])
    shown = capsys.readouterr().out
    curves = json.loads(record.read_text())["curves"]
    assert list(curves) == ["tokens", "files", "entries"]
    for curve, times in zip(curves.values(), (["time"], ["download-data", "tokenize"], ["time"]), strict=True):
        (point,) = curve["points"]
        assert list(point) == ["n", *times, "peak_mb"]
        assert all(0 < point[name] < 100 for name in times) and 50 < point["peak_mb"] < 4000
    assert "| 100,000 | " in shown and "| download-data, s | tokenize, s | memory |" in shown


def test_a_text_has_about_as_many_tokens_as_its_point_says(mirror: Path, tmp_path: Path) -> None:
    for command in growth.one_file(tmp_path, mirror, 100_000):
        growth.run(command, tmp_path)
    n_tokens = sum(open_shard(tmp_path / f"data/tokens/{split}.bin").n_tokens for split in ("train", "val"))
    assert n_tokens == pytest.approx(100_000, rel=0.15)


def git(root: Path, *arguments: str, **options: Any) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, **options).stdout.decode()


def test_each_experiment_has_a_seed_and_metrics_of_its_own(tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(ROOT), "clone")
    clone = tmp_path / "clone"
    stream = b"".join(growth.commits(clone, git(clone, "rev-parse", "HEAD").strip(), 3))
    git(clone, "fast-import", "--quiet", input=stream)
    refs = git(clone, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    assert [ref.rpartition("/")[2] for ref in refs] == ["seed-1", "seed-2", "seed-3"]
    assert len({git(clone, "show", f"{ref}:metrics/pretrain.json") for ref in refs}) == 3
    assert [f"\nseed: {n}" in git(clone, "show", f"{ref}:params.yaml") for n, ref in enumerate(refs, 1)] == [True] * 3
    (group,) = seed_groups(revisions.select(clone))
    (val_loss,) = (figure for figure in group.figures if figure.metric == "pretrain.val_loss")
    assert {1, 2, 3} <= set(group.seeds) and val_loss.n == len(group.seeds) and val_loss.deviation > 0


def test_the_models_have_the_sizes_that_their_points_name() -> None:
    for millions in (1, 3, 10, 30, 124):
        n = sum(parameter.numel() for parameter in growth_points.new_model(millions).parameters()) / 1e6
        assert n == pytest.approx(millions, rel=0.25)


def test_a_point_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 1: .*no such thing"):
        growth.run((growth.PYTHON, "-c", "import sys; sys.exit('no such thing')"), tmp_path)


def test_the_page_has_the_record() -> None:
    record = json.loads(growth.RECORD.read_text(encoding="utf-8"))
    text = page.PAGE.read_text(encoding="utf-8")
    assert set(record["curves"]) <= set(growth.CURVES)
    assert page.with_tables(text, record) == text, "run python -m tools.docs.growth"
