"""What DVC shows of two states of the project: metrics, params and plots that a person can read."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.stages.conftest import Project, clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the fixtures count, too
LOSS = {"train_loss", "val_loss"}
# For each plot: the columns of several that it draws, and the labels of its axes.
PLOTS: dict[str, tuple[set[str], str, str]] = {
    "Token lengths": ({"vocabulary", "text"}, "length of a token (bytes)", "tokens (count)"),
    "Document lengths": (set(), "shortest length of the bin (tokens)", "documents (count)"),
    "Pretraining loss": (LOSS, "tokens seen", "nats per token"),
    "Pretraining perplexity": (set(), "tokens seen", "validation perplexity"),
    "Pretraining learning rate": (set(), "tokens seen", "learning rate"),
    "Pretraining gradient norm": (set(), "tokens seen", "gradient norm (L2, before clipping)"),
    "Classifier loss": (LOSS, "epoch", "nats per message"),
    "Classifier accuracy": ({"train_accuracy", "val_accuracy"}, "epoch", "accuracy (fraction of messages)"),
    "Confusion of the classifier": (set(), "actual label", "predicted label"),
    "ROC of the classifier": (set(), "false positive rate", "true positive rate (recall)"),
    "Precision and recall of the classifier": (set(), "recall", "precision"),
    "Calibration of the classifier": (set(), "mean predicted probability", "observed frequency"),
    "Predicted probabilities of the classifier": (
        set(), "lower bound of the predicted probability", "messages (count)"
    ),
    "Instruction loss": (LOSS, "epoch", "nats per token"),
    "Judge scores": ({"score", "base", "echo", "nearest"}, "score (0 to 100)", "responses"),
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Two commits: the recorded results, and those of another learning rate, of pretraining and of the judge."""
    project = clone(tmp_path_factory.mktemp("dvc") / "project")
    project.set_params({"pretrain.lr": 0.25})
    for name, key in (("pretrain", "pretrain_loss"), ("llm_judge_eval", "score")):
        path = project.root / f"metrics/headline/{name}.json"
        metrics = json.loads(path.read_text())
        path.write_text(json.dumps(metrics | {key: metrics[key] + 0.125}, indent=2) + "\n")
    curve = project.root / "metrics/plots/pretrain.csv"
    curve.write_text(re.sub(r",0\.", ",1.", curve.read_text()))
    project.commit("another learning rate")
    yield project
    shutil.rmtree(project.root, ignore_errors=True)


def test_metrics_diff_shows_what_changed_and_by_how_much(project: Project) -> None:
    shown = project.dvc("metrics", "diff", "HEAD~1", "HEAD", timeout_s=120).stdout
    rows = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines() if line.strip()]
    assert rows[0] == ["Path", "Metric", "HEAD~1", "HEAD", "Change"]
    assert {(path, metric, change) for path, metric, _, _, change in rows[1:]} == {
        ("metrics/headline/pretrain.json", "pretrain_loss", "0.125"),
        ("metrics/headline/llm_judge_eval.json", "score", "0.125"),
    }  # fmt: skip
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_exp_show_with_only_changed_fits_a_terminal(project: Project) -> None:
    arguments = ("exp", "show", "--only-changed", "--num", "2")
    table = list(csv.DictReader(io.StringIO(project.dvc(*arguments, "--csv", timeout_s=120).stdout)))
    assert len(table) == 3  # the workspace and two commits
    changed = table[0].keys() - {"Experiment", "rev", "typ", "Created", "parent", "State", "Executor", "deps"}
    # Loss and score, the learning rate, and no hash of a file that Git keeps anyway.
    assert {"score", "pretrain_loss", "pretrain.lr"} <= changed
    assert {row["pretrain.lr"] for row in table} == {"0.25", "0.006"}
    assert all(len(name) <= 40 for name in changed), changed


def test_exp_show_begins_with_at_most_25_metrics_without_paths(project: Project) -> None:
    header = next(csv.reader(io.StringIO(project.dvc("exp", "show", "--csv", timeout_s=120).stdout)))
    shown = [json.loads(path.read_text()) for path in (project.root / "metrics/headline").glob("*.json")]
    expected = [name for values in shown for name in values]
    metrics = header[header.index("parent") + 1 : header.index("seed")]
    assert sorted(metrics) == sorted(expected)
    assert len(set(metrics)) == len(metrics) <= 25
    assert all(len(name) <= 20 and ":" not in name for name in metrics)


def test_exp_show_has_loss_and_accuracy_in_the_first_120_columns(project: Project) -> None:
    """DVC's pager scrolls to the others. The counts of the corpus, equal in most experiments, come last."""
    shown = project.dvc("exp", "show", timeout_s=120).stdout
    (header,) = [line for line in shown.splitlines() if "Experiment" in line]
    visible = header[:119].split()  # DVC's pager needs one column to mark a longer line
    assert {"pretrain_loss", "perplexity", "accuracy"} <= {*visible}
    assert header.index(" score ") < header.index(" tokens ") < header.index(" seed ")


def test_the_models_are_artifacts(project: Project) -> None:
    """DVC and GTO find them by name; each path is an output of a stage, or one that other sizes have."""
    artifacts = YAML(typ="safe").load(project.root / "dvc.yaml")["artifacts"]
    outs = {out["path"] for stage in project.lock().values() for out in stage.get("outs", [])}
    assert {"pretrained", "classifier", "instruct", "openai-tiny", "openai-124m"} <= artifacts.keys()
    for name, artifact in artifacts.items():
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-/]*[a-z0-9])?", name)
        assert artifact["type"] == "model"
        assert artifact["path"] in outs or artifact["path"].startswith("models/openai/")


def names(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield from names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def test_names_of_metrics_are_short(project: Project) -> None:
    for path in sorted((project.root / "metrics").glob("*.json")):
        if path.stem != "samples":
            assert [n for n in names(json.loads(path.read_text())) if len(n) > 32] == [], path.name


@pytest.mark.parametrize("command", [("show",), ("diff", "HEAD~1", "HEAD")], ids=lambda words: words[0])
def test_plots_overlay_columns_and_revisions_with_units(project: Project, command: tuple[str, ...]) -> None:
    said = project.dvc("plots", *command, "--json", timeout_s=120)
    shown = json.loads(said.stdout)["data"]
    assert said.stderr == ""  # DVC warns about a plot that it leaves out
    assert shown.keys() == PLOTS.keys()
    revisions = set(command[1:]) or {"workspace"}
    for title, (fields, x_label, y_label) in PLOTS.items():
        (plot,) = shown[title]
        spec = plot["content"] if isinstance(plot["content"], dict) else json.loads(plot["content"])
        rows = spec["data"]["values"]
        drawn = {(row["rev"], row.get("field")) for row in rows}
        assert drawn == {(rev, name) for rev in revisions for name in fields or {None}}, title
        text = json.dumps(spec)
        assert "<DVC_METRIC_" not in text
        for wanted in (title, x_label, y_label):
            assert f'"title": {json.dumps(wanted)}' in text or f'"text": {json.dumps(wanted)}' in text


def test_the_page_of_a_plots_diff_has_every_plot(project: Project) -> None:
    out = project.root.parent / "page"
    said = project.dvc("plots", "diff", "HEAD~1", "HEAD", "--out", out, timeout_s=120).stdout
    page = out / "index.html"
    assert page.as_uri() in said
    text = page.read_text(encoding="utf-8")
    assert all(title in text for title in PLOTS)
