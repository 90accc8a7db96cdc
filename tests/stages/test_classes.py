"""docs/classification.md, done as it says: a dataset of three classes, from the file to the report."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest
import yaml

from tests.report.html import Page
from tests.stages.conftest import ROOT, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the fixtures count, too
LABELS = ["sea & weather", "sport", "trade"]


@pytest.fixture(scope="module")
def project(tiny_twins: tuple[Project, Project], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    copy = tiny_twins[1].copy_to(tmp_path_factory.mktemp("classes") / "project")
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/classification.md").read_text(encoding="utf-8"), re.S)
    (script, params, commands) = (next(text for kind, text in blocks if kind == k) for k in ("python", "yaml", "bash"))
    copy.python("-c", script, timeout_s=60)
    asked = {f"{section}.{key}": v for section, rows in yaml.safe_load(params).items() for key, v in rows.items()}
    copy.set_params(asked | {f"finetune_classify.{key}": v for key, v in {
        "seeds": [1, 2], "epochs": 6, "max_steps": None, "position": "last"}.items()})  # fmt: skip
    repro, few, many = commands.strip().splitlines()
    program, *arguments = shlex.split(repro)
    assert program == "dvc"
    assert copy.dvc(*arguments, timeout_s=300).stages_run == ["download-data", "finetune-classify"]
    for name, line in (("few", few), ("many", many)):
        program, *arguments = shlex.split(line)
        assert program == "gpt2core"
        said = copy.python("-m", "gpt2core", *arguments, timeout_s=120).stdout
        (copy.root / f"{name}.out").write_text(said, encoding="utf-8")
    yield copy
    shutil.rmtree(copy.root)


def test_the_metrics_are_those_of_three_classes(project: Project) -> None:
    metrics = json.loads((project.root / "metrics/finetune_classify.json").read_text())
    assert metrics["labels"] == LABELS
    with (project.root / "data/own/topics.csv").open(newline="") as file:
        sizes = Counter(row["topic"] for row in csv.DictReader(file))
    assert sizes == {"sport": 120, "trade": 120, "sea & weather": 90}
    assert [sum(row) for row in metrics["confusion_matrix"]] == [18, 24, 24]  # a fifth of each, not balanced
    assert metrics["majority_test_accuracy"] == pytest.approx(24 / 66, abs=1e-6)
    assert metrics["test_accuracy"] > 0.9 > metrics["majority_test_accuracy"]
    assert len(metrics["test_roc_auc_by_class"]) == 3
    assert sum(metrics["test_roc_auc_by_class"]) / 3 == pytest.approx(metrics["test_roc_auc"], abs=1e-6)
    epochs = Counter(row["seed"] for row in rows(project, "finetune_classify"))
    for seed, kept in metrics["kept_epoch_by_seed"].items():
        losses = [float(row["val_loss"]) for row in rows(project, "finetune_classify") if row["seed"] == seed]
        assert kept == losses.index(min(losses)) + 1
        assert epochs[seed] == min(6, kept + 2)
    for name in ("roc", "precision_recall"):
        assert {row["class"] for row in rows(project, name)} == {*LABELS}


def rows(project: Project, name: str) -> list[dict[str, str]]:
    with (project.root / f"metrics/plots/{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_classify_and_transformers_name_the_classes_alike(project: Project) -> None:
    transformers = pytest.importorskip("transformers")
    few = (project.root / "few.out").read_text().splitlines()
    assert [line[: len("sea & weather")].rstrip() for line in few] == ["trade", "sport"]
    assert all(all(f"{label} " in line for label in LABELS) for line in few)
    results = json.loads((project.root / "many.out").read_text())
    with (project.root / "data/own/topics.csv").open(newline="") as file:
        actual = [row["topic"] for row in csv.DictReader(file)]
    right = [result["label"] == label for result, label in zip(results, actual, strict=True)]
    assert sum(right) / len(right) > 0.9
    pipe = transformers.pipeline("text-classification", str(project.root / "models/classifier"), device="cpu")
    for result, theirs in zip(results, pipe([result["text"] for result in results[:20]]), strict=False):
        assert theirs["label"] == result["label"]
        assert theirs["score"] == pytest.approx(result["probabilities"][result["label"]], abs=1e-4)


def test_the_report_has_the_pictures_of_all_classes(project: Project) -> None:
    project.python("-m", "gpt2core", "report", "--out", "report/index.html", timeout_s=120)
    page = Page((project.root / "report/index.html").read_text(encoding="utf-8"))
    alts = " ".join(image["alt"] for image in page.all("img"))
    assert "ROC: true positives by false positives, each class against the rest" in alts
    assert "Precision by recall, each class against the rest" in alts
    assert "Which of 3 classes" in page.text and "F1, mean of the classes" in page.text
    summary = json.loads(project.python("-m", "gpt2core", "summary", "--json", timeout_s=120).stdout)
    assert sorted(row["label"] for row in summary["messages"]) == LABELS
