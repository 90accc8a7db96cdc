"""DVC experiments: a queue of learning rates, a temporary one, and whose code they run."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stages.conftest import ROOT, Project, clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the fixtures count, too

LEARNING_RATES = (0.001, 0.003)
TEMPORARY_RATE = 0.004
# What follows pretraining in the experiments: less of each.
SMALL = {
    "pretrain.max_steps": 12,
    "pretrain.eval_interval_steps": 12,
    "finetune_classify.max_steps": 2,
    "finetune_classify.warmup_steps": 1,
    "finetune_classify.test_fraction": 0.02,
    "finetune_classify.val_fraction": 0.02,
    "finetune_instruct.max_steps": 2,
    "finetune_instruct.warmup_steps": 1,
    "finetune_instruct.max_new_tokens": 4,
    "judge.bootstrap_samples": 20,
}
STAGES = {"pretrain", "finetune-classify", "finetune-instruct", "llm-judge-eval"}  # upstream nothing changes
SAYS_WHERE = """
import os
import gpt2core
print("imported from", gpt2core.__file__)
print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


@pytest.fixture(scope="module")
def project(
    tiny_twins: tuple[Project, Project], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Project, dict[str, str]]]:
    """The two experiments of a queue and a temporary one, run; with what each of them wrote, by its learning rate."""
    folder = tmp_path_factory.mktemp("experiments")
    project = tiny_twins[1].copy_to(folder / "project")
    project.env = project.env | {"GPT2CORE_TRACKING": "on"}
    script = project.root / "stages/pretrain.py"
    script.write_text(script.read_text(encoding="utf-8") + SAYS_WHERE, encoding="utf-8")
    project.set_params(SMALL)
    project.commit("the baseline")
    # What the workspace has but the experiments' commit does not: an experiment that imports it fails.
    package = project.root / "gpt2core/__init__.py"
    committed = package.read_text(encoding="utf-8")
    try:
        rates = ",".join(map(str, LEARNING_RATES))
        project.dvc("exp", "run", "--queue", "--set-param", f"pretrain.lr={rates}", timeout_s=120)
        package.write_text('raise ImportError("this is the workspace, not the experiment")\n', encoding="utf-8")
        project.run(ROOT / "examples/clusters/queue_gpus.sh", "2", timeout_s=540)
        names = [row["Experiment"] for row in rows(project) if row["Experiment"]]
        logs = {name: project.dvc("queue", "logs", name, timeout_s=60).output for name in names}
        package.write_text(committed, encoding="utf-8")
        temporary = project.dvc(
            "exp", "run", "--temp", "--name", "temporary", "--set-param", f"pretrain.lr={TEMPORARY_RATE}", timeout_s=300
        )
        yield project, logs | {"temporary": temporary.output}
    finally:
        project.dvc("queue", "stop", "--kill", timeout_s=60, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def rows(project: Project) -> list[dict[str, str]]:
    """The table of `dvc exp show`."""
    return list(csv.DictReader(io.StringIO(project.dvc("exp", "show", "--csv", timeout_s=60).stdout)))


def mlflow_runs(project: Project) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project.root / 'mlflow.db'}")
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_exp_show_has_a_row_for_each_experiment(project: tuple[Project, dict[str, str]]) -> None:
    experiments = {float(row["pretrain.lr"]): row for row in rows(project[0]) if row["Experiment"]}
    assert experiments.keys() == {*LEARNING_RATES, TEMPORARY_RATE}
    losses = set()
    for row in experiments.values():
        assert row["State"] in ("", "Success"), row
        assert row["score"]
        losses.add(float(row["pretrain_loss"]))
    assert len(losses) == len(experiments)  # each trained on its own


def test_each_worker_of_the_queue_has_a_gpu(project: tuple[Project, dict[str, str]]) -> None:
    gpus = [log.split("GPU ", 1)[1].split()[0] for name, log in project[1].items() if name != "temporary"]
    assert sorted(gpus) == ["0", "1"]


def test_mlflow_has_a_parent_for_each_experiment_in_one_store(project: tuple[Project, dict[str, str]]) -> None:
    runs = mlflow_runs(project[0])
    parents = {run.info.run_name: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert len(parents) == len(runs) - sum("mlflow.parentRunId" in run.data.tags for run in runs)
    names = {row["Experiment"] for row in rows(project[0]) if row["Experiment"]}
    assert parents.keys() == names
    assert {float(run.data.params["pretrain.lr"]) for run in parents.values()} == {*LEARNING_RATES, TEMPORARY_RATE}
    baseline = project[0].git("rev-parse", "HEAD")
    for name, parent in parents.items():
        children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        stages = [child.info.run_name for child in children]
        assert len(stages) == len(set(stages))
        assert set(stages) == STAGES
        for run in (parent, *children):
            assert run.info.status == "FINISHED"
            assert run.data.tags["dvc_exp_name"] == name
            assert run.data.tags["dvc_exp_baseline"] == baseline
        assert parent.data.metrics.keys() >= {"pretrain.val_loss", "llm-judge-eval.mean_score"}


def test_artifacts_outlive_the_temporary_copy(project: tuple[Project, dict[str, str]]) -> None:
    root = project[0].root
    for run in mlflow_runs(project[0]):
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        assert folder.is_relative_to(root / "mlartifacts")
        if run.info.run_name == "pretrain":
            assert (folder / "pretrain.csv").stat().st_size > 0
    assert not list((root / ".dvc/tmp/exps").rglob("mlflow.db"))


def test_experiments_import_their_own_copy_of_the_package(project: tuple[Project, dict[str, str]]) -> None:
    root, logs = project[0].root, project[1]
    assert len(logs) == len(LEARNING_RATES) + 1
    for name, log in logs.items():
        imported = [line for line in log.splitlines() if line.startswith("imported from ")]
        assert len(imported) == 1, f"{name}:\n{log[-3000:]}"
        path = Path(imported[0].removeprefix("imported from "))
        assert path.is_relative_to(root / ".dvc/tmp/exps"), name


def test_the_workspace_is_as_it_was(project: tuple[Project, dict[str, str]]) -> None:
    assert project[0].git("status", "--porcelain") == ""
    again = project[0].dvc("exp", "apply", "temporary", timeout_s=60)
    assert again.returncode == 0
    assert f"lr: {TEMPORARY_RATE}" in (project[0].root / "params.yaml").read_text()
    assert project[0].dvc("repro", timeout_s=120).stages_run == []  # all of it was kept


# -- What an experiment may change -----------------------------------------------------------------------------------

TEXTS = {  # with signs that a parser may take for its own
    "data.corpus": "own/my tales.txt",
    "pretrain.sample_prompt": "Once upon a time",
    "finetune_classify.base": "openai/124M",
    "judge.base_url": "http://127.0.0.1:11434/v1",
    "judge.model": "llama3:8b",
}


def flat(params: dict[str, Any]) -> dict[str, Any]:
    sections = {name: section for name, section in params.items() if isinstance(section, dict)}
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return values | {name: value for name, value in params.items() if name not in sections}


def another(name: str, value: Any) -> Any:
    """A value of the same kind; what a stage would say to it is another matter."""
    if name in TEXTS or isinstance(value, str):
        return TEXTS.get(name, "another")
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, "124M"] if name == "openai.sizes" else [7, 8]
    if isinstance(value, float):
        return value / 2 + 6e-4
    return 3 if value is None else value + 1


def test_set_param_works_for_every_param(tmp_path: Path) -> None:
    project = clone(tmp_path / "project")
    wanted = {}
    overrides = []
    for name, value in flat(yaml.safe_load((project.root / "params.yaml").read_text())).items():
        wanted[name] = another(name, value)
        text = repr(wanted[name]) if isinstance(wanted[name], list | float) else str(wanted[name])
        overrides += ["--set-param", f"{name}={text.replace(chr(39), '')}"]
    project.dvc("exp", "run", "--queue", *overrides, timeout_s=60)
    (revision,) = (row["rev"] for row in rows(project) if row["State"] == "Queued")
    queued = project.root / "queued.yaml"
    queued.write_text(project.git("show", f"{revision}:params.yaml"))
    assert flat(yaml.safe_load(queued.read_text())) == wanted


def test_ones_own_data_is_a_dependency_in_experiments_too(tiny_twins: tuple[Project, Project], tmp_path: Path) -> None:
    """As data/own/README.md says: Git must know the file."""
    project = tiny_twins[1].copy_to(tmp_path / "project")
    project.commit("the baseline")
    tales = (project.root / "data/raw/corpus/train/tales.txt").read_bytes()[:300_000]
    own = project.root / "data/own/tales.txt"
    digests = set()
    for number, text in enumerate((tales, tales[:-1] + b"!")):
        own.write_bytes(text)
        project.git("add", "--intent-to-add", "data/own/tales.txt")
        command = ("exp", "run", "--temp", "--name", f"own-{number}", "--set-param", "data.corpus=own/tales.txt")
        assert project.dvc(*command, "tokenize", timeout_s=120).stages_run == ["download-data", "tokenize"]
        (revision,) = (row["rev"] for row in rows(project) if row["Experiment"] == f"own-{number}")
        lock = yaml.safe_load(project.git("show", f"{revision}:dvc.lock"))
        digests |= {out["md5"] for out in lock["stages"]["tokenize"]["outs"] if out["path"] == "data/tokens"}
    assert len(digests) == 2
    assert (project.root / "params.yaml").read_text() == project.git("show", "HEAD:params.yaml") + "\n"


def test_a_registered_model_is_fetched_by_its_name(tiny_twins: tuple[Project, Project], tmp_path: Path) -> None:
    project = tiny_twins[1].copy_to(tmp_path / "project")
    project.dvc("remote", "add", "--default", "store", tmp_path / "store")
    project.dvc("push", "models/instruct", timeout_s=120)
    project.commit("a remote")
    project.git("tag", "--annotate", "instruct@v0.1.0", "--message", "the first version")
    project.dvc("artifacts", "get", project.root, "instruct", "--out", tmp_path / "fetched", timeout_s=120)
    made = {path.name: path.read_bytes() for path in (project.root / "models/instruct").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "fetched").iterdir()} == made
