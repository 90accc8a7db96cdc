"""The whole pipeline: the profile `tiny` in two clean clones, what it leaves behind, and what reruns when."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import gpt2core
from gpt2core.metric_files import HEADLINES
from gpt2core.model import GPTClassifier
from tests.report.html import Page
from tests.stages.conftest import Project
from tools import tiny_outputs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the fixtures count, too
STAGES = {
    "download-data", "tokenize", "pretrain", "fetch-openai-weights@tiny", "convert@tiny", "finetune-classify",
    "finetune-instruct", "llm-judge-eval",
}  # fmt: skip
METRICS = {
    "tokenize": {"vocab_size", "train_tokens", "val_tokens"},
    "pretrain": {"val_loss", "val_perplexity", "bits_per_byte", "bits_per_byte_floor", "trigram_bits_per_byte"},
    "finetune_classify": {"test_accuracy", "test_f1", "baseline_test_accuracy", "before_test_accuracy"},
    "finetune_instruct": {"val_loss", "before_val_loss", "test_loss", "test_perplexity", "before_test_perplexity"},
    "llm_judge_eval": {"judge", "mean_score", "base_score", "echo_score", "nearest_score", "coverage", "n"},
}
LONGEST_NO_OP_S = 6.0  # of the processor's time, about 3 s


@pytest.fixture(scope="module")
def tracked(tiny_twins: tuple[Project, Project]) -> Project:
    return tiny_twins[0]


@pytest.fixture(scope="module")
def metrics(tracked: Project) -> dict[str, dict[str, Any]]:
    """Each file of metrics/, by its stem."""
    return {path.stem: json.loads(path.read_text()) for path in (tracked.root / "metrics").glob("*.json")}


@pytest.fixture
def scratch(tiny_twins: tuple[Project, Project], tmp_path: Path) -> Iterator[Project]:
    """A reproduced project to change."""
    yield tiny_twins[1].copy_to(tmp_path / "scratch")
    shutil.rmtree(tmp_path / "scratch")


# -- The same twice --------------------------------------------------------------------------------------------------


def test_two_clones_end_with_the_same_lock(tiny_twins: tuple[Project, Project]) -> None:
    one, other = ((project.root / "dvc.lock").read_bytes() for project in tiny_twins)
    assert one == other
    assert tiny_twins[0].lock().keys() >= STAGES


def test_outputs_have_the_recorded_hashes(tiny_twins: tuple[Project, Project]) -> None:
    """As on every x86-64 CPU with AVX2: those of profiles/tiny.sha256."""
    for twin in tiny_twins:
        assert tiny_outputs.output_hashes(twin.root) == tiny_outputs.recorded_hashes()


def children_s() -> float:
    """The processor's time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_second_repro_runs_nothing(tracked: Project) -> None:
    before = (tracked.root / "dvc.lock").read_bytes()
    runs = len(mlflow_runs(tracked))
    before_s = children_s()
    again = tracked.dvc("repro", timeout_s=120)
    assert again.stages_run == []
    assert children_s() - before_s <= LONGEST_NO_OP_S
    assert "Data and pipelines are up to date" in again.output
    assert (tracked.root / "dvc.lock").read_bytes() == before
    assert len(mlflow_runs(tracked)) == runs  # none added, none lost


def test_nothing_of_the_machine_is_in_the_lock(tracked: Project) -> None:
    text = (tracked.root / "dvc.lock").read_text()
    assert str(tracked.root) not in text
    assert "mirror" not in text.lower()


# -- What it made ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_metrics_have_their_keys(metrics: dict[str, dict[str, Any]], name: str) -> None:
    assert metrics[name].keys() >= METRICS[name]
    for key, value in metrics[name].items():
        assert not any(word in key for word in ("duration", "seconds", "time", "per_s")), key
        assert not isinstance(value, float) or math.isfinite(value)


def test_metrics_agree_with_each_other(metrics: dict[str, dict[str, Any]]) -> None:
    tokens, language = metrics["tokenize"], metrics["pretrain"]
    assert language["val_perplexity"] == pytest.approx(math.exp(language["val_loss"]), rel=1e-5)
    bits = language["val_loss"] / math.log(2) * tokens["val_tokens"] / tokens["val_bytes"]
    assert language["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert language["bits_per_byte_floor"] < language["trigram_bits_per_byte"]
    assert language["bits_per_byte_floor"] < language["bits_per_byte"]
    assert language["val_loss"] < math.log(tokens["vocab_size"])  # it learned something
    assert metrics["finetune_instruct"]["val_loss"] < metrics["finetune_instruct"]["before_val_loss"]
    instruct = metrics["finetune_instruct"]
    assert instruct["test_perplexity"] == pytest.approx(math.exp(instruct["test_loss"]), rel=1e-5)
    classifier = metrics["finetune_classify"]
    assert sum(map(sum, classifier["confusion_matrix"])) == classifier["test_messages"]
    assert metrics["llm_judge_eval"]["n"] == metrics["finetune_instruct"]["test_entries"]
    assert metrics["llm_judge_eval"]["coverage"] == 1
    assert metrics["llm_judge_eval"]["judge"] == "chrf"


@pytest.mark.parametrize("name", ["pretrained", "openai/tiny", "classifier", "instruct"])
def test_transformers_opens_the_models_as_they_stand(tracked: Project, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tracked.root / "models" / name
    model, tokenizer = gpt2core.load(folder)
    is_classifier = isinstance(model, GPTClassifier)
    auto = transformers.AutoModelForSequenceClassification if is_classifier else transformers.AutoModelForCausalLM
    theirs, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Mara took the lamp to the harbour, didn't she?\n\nYes: 12 times."
    ids = tokenizer.encode(text)
    assert their_tokenizer.encode(text) == ids
    assert their_tokenizer.decode(ids) == text
    with torch.inference_mode():
        batch = torch.tensor([ids])
        ours = model(batch, torch.tensor([len(ids)])) if is_classifier else model(batch)
        torch.testing.assert_close(theirs.eval()(batch).logits, ours, atol=1e-4, rtol=1e-4)
    if name == "instruct":
        chat = [{"role": "user", "content": "Name a colour."}]
        prompt = their_tokenizer.apply_chat_template(chat, tokenize=False)
        assert prompt.endswith("### Instruction:\nName a colour.\n\n### Response:\n")


def test_no_file_is_a_pickle(tracked: Project) -> None:
    """Neither in the model directories nor in what MLflow keeps of them."""
    kept = [path for name in ("models", "mlartifacts") for path in (tracked.root / name).rglob("*") if path.is_file()]
    assert {path.suffix for path in kept if path.is_relative_to(tracked.root / "models")} == {
        ".json", ".md", ".safetensors", ".txt"
    }  # fmt: skip
    assert any(path.suffix == ".safetensors" and path.is_relative_to(tracked.root / "mlartifacts") for path in kept)
    assert [path for path in kept if re.match(rb"\x80[\x02-\x05]", path.read_bytes()[:2])] == []  # of every protocol


# -- Ways to look at it ----------------------------------------------------------------------------------------------


def test_summary(tracked: Project, metrics: dict[str, dict[str, Any]]) -> None:
    shown = tracked.python("-m", "gpt2core", "summary", timeout_s=120).stdout
    assert f"{metrics['pretrain']['val_loss']:.3f}" in shown
    assert f"{metrics['finetune_classify']['test_accuracy']:.2%}" in shown
    assert f"{metrics['llm_judge_eval']['mean_score']:.1f}" in shown
    assert "mlflow ui" in shown
    values = json.loads(tracked.python("-m", "gpt2core", "summary", "--json", timeout_s=120).stdout)
    assert values["metrics"] == {name: metrics[name] for name in values["metrics"]}
    assert len(values["messages"]) == 3
    assert len(values["answers"]) == 2
    assert values["text"]
    for row in values["messages"]:
        assert row["text"] in " ".join(shown.split()) or row["text"][:40] in shown


def test_dvc_metrics_show(tracked: Project, metrics: dict[str, dict[str, Any]]) -> None:
    shown = json.loads(tracked.dvc("metrics", "show", "--json", timeout_s=60).stdout)
    by_file = {Path(name).stem: entry["data"] for name, entry in shown[""]["data"].items()}
    for name, keys in HEADLINES.items():
        assert by_file[name] == {short: metrics[name][key] for short, key in keys.items() if key in metrics[name]}
    paths = [f"metrics/{name}.json" for name in METRICS]
    shown = json.loads(tracked.dvc("metrics", "show", *paths, "--json", timeout_s=60).stdout)
    for name in METRICS:  # DVC leaves lists, such as the confusion matrix, out
        values = shown[""]["data"][f"metrics/{name}.json"]["data"]
        assert values == {key: value for key, value in metrics[name].items() if not isinstance(value, list)}


def test_dvc_params_diff(tracked: Project) -> None:
    """From the default profile, a commit back, to `tiny`."""
    shown = json.loads(tracked.dvc("params", "diff", "HEAD~1", "--json", timeout_s=60).stdout)
    assert shown["params.yaml"]["pretrain.n_embd"] == {"old": None, "new": 64}


def test_dvc_plots_show(tracked: Project, tmp_path: Path) -> None:
    tracked.dvc("plots", "show", "--out", tmp_path, timeout_s=120)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for word in ("train_loss", "val_loss", "val_accuracy", "predicted", "actual"):
        assert word in page
    vega = json.loads(tracked.dvc("plots", "show", "--json", timeout_s=120).stdout)
    assert vega.keys() >= {"data"}
    plots = yaml.safe_load((tracked.root / "dvc.yaml").read_text())["plots"]
    assert vega["data"].keys() == {title for plot in plots for title in plot}
    assert not vega.get("errors")


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("pretrain", {"tokens", "train_loss", "val_loss", "val_perplexity", "val_bits_per_byte", "lr", "grad_norm"}),
        ("finetune_classify", {"seed", "epoch", "train_accuracy", "val_accuracy"}),
        ("finetune_instruct", {"epoch", "train_loss", "val_loss"}),
        ("confusion", {"actual", "predicted"}),
        ("roc", {"seed", "class", "false_positive_rate", "true_positive_rate"}),
        ("precision_recall", {"seed", "class", "recall", "precision"}),
        ("judge_scores", {"index", "score", "base", "echo", "nearest"}),
    ],
)
def test_plots_have_their_columns(tracked: Project, name: str, columns: set[str]) -> None:
    rows = list(csv.DictReader(io.StringIO((tracked.root / f"metrics/plots/{name}.csv").read_text())))
    assert rows
    assert rows[0].keys() >= columns


def test_no_picture_is_drawn_into_the_project(tiny_twins: tuple[Project, Project]) -> None:
    for twin in tiny_twins:
        drawn = [*(twin.root / "metrics").rglob("*"), *(twin.root / "models").rglob("*")]
        assert drawn
        assert not {path.suffix for path in drawn} & {".svg", ".png", ".jpg", ".jpeg"}


def test_the_report_is_one_file_of_what_is_there(tracked: Project, metrics: dict[str, dict[str, Any]]) -> None:
    said = tracked.python("-m", "gpt2core", "report", "--out", "report/index.html", timeout_s=120)
    assert "warning" not in said.stderr
    html = (tracked.root / "report/index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.fetched() == []
    titles = [heading["id"] for heading in page.all("h2")]
    assert titles == [
        "results", "text", "pretraining", "inside", "classifier", "instructions", "judge", "runs", "params",
    ]  # fmt: skip
    assert f"{metrics['llm_judge_eval']['mean_score']:.1f} (95% interval" in page.text
    samples = json.loads((tracked.root / "metrics/samples.json").read_text())
    assert " ".join(samples[-1]["text"].split()) in page.text
    images = page.all("img")
    assert len(images) == len(page.all("source")) == 15
    assert all(image["alt"] for image in images)
    (pretrain,) = (run for run in mlflow_runs(tracked) if run.info.run_name == "pretrain")
    assert any(link["href"].endswith(f"/runs/{pretrain.info.run_id}") for link in page.all("a"))


# -- MLflow ----------------------------------------------------------------------------------------------------------


def mlflow_client(project: Project) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{project.root / 'mlflow.db'}")


def mlflow_runs(project: Project) -> list[Any]:
    client = mlflow_client(project)
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_mlflow_has_a_parent_with_a_child_for_each_stage(tracked: Project, metrics: dict[str, dict[str, Any]]) -> None:
    client, runs = mlflow_client(tracked), mlflow_runs(tracked)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    (parent,) = parents
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert len(children) == len(runs) - 1 == len(STAGES)
    assert children.keys() == STAGES
    for child in children.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run.info.status for run in runs} == {"FINISHED"}
    revision = tracked.git("rev-parse", "HEAD")
    assert {run.data.tags["git_revision"] for run in runs} == {revision}

    params = yaml.safe_load((tracked.root / "params.yaml").read_text())
    assert parent.data.params["pretrain.lr"] == str(params["pretrain"]["lr"])
    assert parent.data.params["judge.kind"] == "chrf"
    assert children["pretrain"].data.params.items() <= parent.data.params.items()
    assert parent.data.metrics["pretrain.val_loss"] == metrics["pretrain"]["val_loss"]
    assert parent.data.metrics["finetune-classify.test_accuracy"] == metrics["finetune_classify"]["test_accuracy"]

    steps = [point.step for point in client.get_metric_history(children["pretrain"].info.run_id, "train_loss")]
    assert set(steps) == set(range(1, params["pretrain"]["max_steps"] + 1))
    for name, wanted in {
        "tokenize": {"plots/token_lengths.svg"},
        "pretrain": {
            "pretrain.csv", "plots/pretrain_loss.svg", "plots/pretrain_perplexity.svg", "plots/pretrain_attention.svg",
            "plots/pretrain_learning_rate.svg", "plots/pretrain_grad_norm.svg", "plots/pretrain_temperature.svg",
        },
        "finetune-classify": {
            "finetune_classify.csv", "plots/classify_accuracy.svg", "plots/classify_confusion.svg",
            "plots/classify_reliability.svg", "plots/classify_roc.svg", "plots/classify_precision_recall.svg",
        },
        "finetune-instruct": {"finetune_instruct.csv", "plots/instruct_loss.svg"},
        "llm-judge-eval": {"judge_scores.csv", "plots/judge_scores.svg"},
    }.items():  # fmt: skip
        run_id = children[name].info.run_id
        found = {file.path for folder in ("", "plots") for file in client.list_artifacts(run_id, folder or None)}
        assert found >= wanted


def test_the_line_that_opens_the_runs_in_a_browser_works(tracked: Project) -> None:
    """As `gpt2core summary` prints it, on a free port."""
    shown = tracked.python("-m", "gpt2core", "summary", timeout_s=120).stdout
    (command,) = re.findall(r"mlflow (ui --backend-store-uri \S+)", shown)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command.split(), "--host", "127.0.0.1", "--port", str(port)],
            cwd=tracked.root, env=tracked.env, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            page = poll(f"http://127.0.0.1:{port}/", server, timeout_s=240)
            assert "MLflow" in page
            api = f"http://127.0.0.1:{port}/api/2.0/mlflow"
            found = poll(f"{api}/experiments/get-by-name?experiment_name=gpt2core", server)
            assert json.loads(found)["experiment"]["name"] == "gpt2core"
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # it has worker processes
            server.wait(timeout=30)


def poll(url: str, server: subprocess.Popen[bytes], timeout_s: float = 90) -> str:
    """The answer of a server that may still be starting."""
    deadline_s = time.monotonic() + timeout_s
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        assert server.poll() is None, "the server has ended"
        try:
            with direct.open(url, timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.3)


# -- What reruns -----------------------------------------------------------------------------------------------------


def test_an_edited_byte_of_ones_own_corpus_reruns_what_reads_it(scratch: Project) -> None:
    tales = (scratch.root / "data/raw/corpus/train/tales.txt").read_text(encoding="utf-8")
    own = scratch.root / "data/own/tales.txt"
    own.write_text(tales[:300_000], encoding="utf-8")
    scratch.set_params({"data.corpus": "own/tales.txt"})
    first = scratch.dvc("repro", "tokenize", timeout_s=180)
    assert first.stages_run == ["download-data", "tokenize"]
    assert scratch.dvc("repro", "tokenize").stages_run == []
    text = own.read_bytes()
    own.write_bytes(text[:-1] + b"!")
    assert scratch.dvc("repro", "tokenize", timeout_s=180).stages_run == ["download-data", "tokenize"]
    assert (scratch.root / "data/raw/corpus/train/tales.txt").read_bytes() == text[:-1] + b"!"


def test_a_file_in_data_own_that_no_param_names_reruns_nothing_else(scratch: Project) -> None:
    (scratch.root / "data/own/notes.txt").write_text("not for the model\n", encoding="utf-8")
    assert scratch.dvc("repro", timeout_s=180).stages_run == ["download-data"]


def test_an_edited_judge_reruns_the_judge_alone(scratch: Project) -> None:
    path = scratch.root / "gpt2core/evaluation/judges/chrf.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    before = {name: entry.get("outs") for name, entry in scratch.lock().items()}
    assert scratch.dvc("repro", timeout_s=300).stages_run == ["llm-judge-eval"]
    assert {name: entry.get("outs") for name, entry in scratch.lock().items()} == before  # the same bytes again


def test_a_stage_that_fails_leaves_its_message_and_no_traceback(scratch: Project) -> None:
    scratch.set_params({"pretrain.n_head": 5, "pretrain.context": 4096, "judge.kind": "oracle"})
    failed = scratch.dvc("repro", timeout_s=120, check=False)
    assert failed.returncode != 0
    assert "Traceback" not in failed.output
    for name in ("pretrain.n_head", "pretrain.context", "judge.kind"):
        assert failed.output.count(f"  {name}: ") == 1
