"""`scripts/seeds.py` (`make seeds`): DVC experiments of a small pipeline, interrupted, repeated, and recorded."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gpt2core.report import results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
RECORD = "benchmarks/records/seeds.json"
STAGE = """
import json, os, sys, yaml
name = sys.argv[1]
seed = yaml.safe_load(open("params.yaml"))["seed"]
if (name, str(seed)) == ("llm_judge_eval", os.environ.get("FAILING_SEED")):
    sys.exit("the judge is away")
with open(os.environ["STAGE_LOG"], "a") as log:
    log.write(f"{name} {seed}\\n")
metrics = {"val_loss": 3 + seed / 8, "test_accuracy": 1 - seed / 100, "mean_score": 80 + seed, "judge": "x", "other": 1}
json.dump(metrics, open(f"metrics/{name}.json", "w"))
"""


class Project:
    """A Git repository with a DVC pipeline that has the names of the real stages."""

    def __init__(self, root: Path):
        self.root = root
        self.log = root.parent / "stages.log"
        self.log.touch()
        private = ("DVC_", "GPT2CORE_", "GIT_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(private)}
        self.env |= {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
            "STAGE_LOG": str(self.log),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        root.mkdir()
        for name in ("stages", "gpt2core", "metrics", "benchmarks"):
            (root / name).mkdir()
        (root / "stages/stage.py").write_text(STAGE)
        (root / "gpt2core/code.py").write_text("x = 1\n")
        (root / "README.md").write_text("as committed\n")
        (root / "params.yaml").write_text("seed: 1234\npretrain: {lr: 0.1}\n")
        stages, previous = {}, []
        for stem in results.NAMES:
            stages[stem.replace("_", "-")] = {
                "cmd": f"python stages/stage.py {stem}",
                "params": ["seed", "pretrain"],
                "deps": ["stages/stage.py", *previous],
                "metrics": [{f"metrics/{stem}.json": {"cache": False}}],
            }
            previous = [f"metrics/{stem}.json"]
        (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
        self.run("git", "init", "-q")
        self.run("git", "config", "user.name", "test")
        self.run("git", "config", "user.email", "test@example.invalid")
        self.dvc("init", "-q")
        self.dvc("config", "core.autostage", "false")
        self.dvc("repro")
        self.commit()
        self.log.write_text("")

    def run(self, *command: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            command, cwd=self.root, env=self.env | env, capture_output=True, text=True, timeout=300
        )  # fmt: skip
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def seeds(self, n: int, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, str(ROOT / "scripts/seeds.py"), "--seeds", str(n), code=code, **env)

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "-qm", "a commit")

    def stages_run(self) -> list[str]:
        """The stages that ran since the last call, with their seeds."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return lines

    def status(self) -> str:
        return self.run("git", "status", "--porcelain").stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose owner has an experiment of seed 1 and another one in the queue; three seeds recorded, the second
    one after a failure."""
    project = Project(tmp_path_factory.mktemp("seeds") / "project")
    project.dvc("exp", "run", "--temp", "--name", "mine", "-S", "seed=1", "-S", "pretrain.lr=0.2")
    project.dvc("exp", "run", "--queue", "--name", "queued", "-S", "seed=9")
    project.stages_run()
    (project.root / "README.md").write_text("an uncommitted change\n")

    failed = project.seeds(3, code=1, FAILING_SEED="2")
    assert failed.stdout == ""
    assert failed.stderr.splitlines()[-1].startswith("error: seed 2: the experiment seeds-2 failed with exit code ")
    assert not (project.root / RECORD).exists()
    assert project.stages_run() == [
        *(f"{stage} 1" for stage in results.NAMES), *(f"{stage} 2" for stage in results.NAMES[:3])
    ]  # fmt: skip
    yield project


def test_it_continues_and_records_the_headline_metrics(project: Project) -> None:
    ended = project.seeds(3)
    assert project.stages_run() == ["llm_judge_eval 2", *(f"{stage} 3" for stage in results.NAMES)]
    record = json.loads((project.root / RECORD).read_text())
    assert (record["seeds"], record["confidence"]) == ([1, 2, 3], 0.95)
    assert set(record["metrics"]) == {
        "pretrain.val_loss", "finetune-classify.test_accuracy", "finetune-instruct.val_loss",
        "llm-judge-eval.mean_score",
    }  # fmt: skip
    scores = [81, 82, 83]
    half_width = 4.302653 * statistics.stdev(scores) / 3**0.5  # Student's t, 2 degrees of freedom
    assert record["metrics"]["llm-judge-eval.mean_score"] == {
        "n": 3, "mean": 82, "sd": 1, "ci_low": pytest.approx(82 - half_width, abs=1e-5),
        "ci_high": pytest.approx(82 + half_width, abs=1e-5), "values": {"1": 81, "2": 82, "3": 83},
    }  # fmt: skip
    assert "seeds 1, 2, 3" in ended.stdout and "llm-judge-eval.mean_score" in ended.stdout


def test_the_workspace_and_the_other_experiments_are_as_before(project: Project) -> None:
    project.seeds(3)
    assert project.status().splitlines() == [" M README.md", "?? benchmarks/"]
    assert (project.root / "README.md").read_text() == "an uncommitted change\n"
    assert project.run("git", "stash", "list").stdout == ""
    table = project.dvc("exp", "show", "--csv").stdout
    assert all(name in table for name in ("mine", "queued", "seeds-1", "seeds-2", "seeds-3"))
    assert "Queued" in table and "seeds-4" not in table


def test_a_second_time_it_runs_nothing_and_writes_the_same(project: Project) -> None:
    project.seeds(3)
    project.stages_run()
    first = (project.root / RECORD).read_bytes()
    project.seeds(3)
    assert project.stages_run() == []
    assert (project.root / RECORD).read_bytes() == first


def test_a_commit_that_changes_no_result_runs_nothing(project: Project) -> None:
    project.seeds(3)
    project.commit()  # the README and the record
    experiments = project.run("git", "for-each-ref", "refs/exps").stdout
    project.seeds(3)
    assert project.run("git", "for-each-ref", "refs/exps").stdout == experiments


def test_the_seed_of_the_workspace_is_an_experiment_too(project: Project) -> None:
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("1234", "2"))
    project.commit()
    try:
        project.seeds(2)
        assert project.stages_run() == []  # DVC's run cache has all of these stages
        assert json.loads((project.root / RECORD).read_text())["seeds"] == [1, 2]
    finally:
        params.write_text(params.read_text().replace("2", "1234", 1))
        project.commit()


def test_uncommitted_code_is_refused_in_one_line(project: Project) -> None:
    code, new = project.root / "gpt2core/code.py", project.root / "stages/new.py"
    code.write_text("x = 2\n")
    new.touch()
    try:
        said = project.seeds(3, code=1).stderr
    finally:
        code.write_text("x = 1\n")
        new.unlink()
    assert said.count("\n") == 1 and said.startswith("error: commit or stash these changes first")
    assert "gpt2core/code.py, stages/new.py" in said


def test_an_experiment_of_the_same_name_with_other_params_is_refused(project: Project) -> None:
    project.dvc("exp", "run", "--temp", "--name", "seeds-4", "-S", "seed=4", "-S", "pretrain.lr=0.3")
    said = project.seeds(4, code=1).stderr
    assert said.splitlines()[-1] == (
        "error: experiment seeds-4: lacks results of seed=4; remove it: dvc exp remove seeds-4"
    )
