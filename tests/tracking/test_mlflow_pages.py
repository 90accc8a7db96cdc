"""A real `mlflow ui` to which stages log over HTTP, and its pages in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2core.config.mlflow import Mlflow
from gpt2core.params import Params
from gpt2core.tracking import track_stage
from tests.tracking.mlflow_pages import Pages, pages, server

pytestmark = pytest.mark.slow
LOSSES = {"bold-lamb": 3.0625, "calm-fox": 2.5625}  # of two experiments
ACCURACY = 0.8125
PARAMS = Params.model_construct(seed=7, mlflow=Mlflow(log_models=True, register=True))


@pytest.fixture(scope="module")
def address(empty_store: Path, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, root / "mlflow.db")
    elsewhere = tmp_path_factory.mktemp("project")
    with server(root) as started, pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        patch.setenv("DVC_ROOT", str(elsewhere))
        patch.setenv("GPT2CORE_TRACKING", "on")
        patch.setenv("MLFLOW_TRACKING_URI", started)
        patch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
        for name, loss in LOSSES.items():
            patch.setenv("DVC_EXP_NAME", name)
            with track_stage("pretrain", PARAMS) as run:
                for step in range(1, 11):
                    run.log_metrics({"val_loss": loss + 1 / step}, step)
                run.finish({"val_loss": loss})
            with track_stage("finetune-classify", PARAMS) as run:
                run.finish({"test_accuracy": ACCURACY})
                run.log_model("classifier", models_dir / "classifier", {"test_accuracy": ACCURACY})
        yield started
    assert not list(elsewhere.rglob("*.safetensors")) and not (elsewhere / "mlflow.db").exists()


@pytest.fixture(scope="module")
def shown(address: str) -> Iterator[Pages]:
    with pages(address) as opened:
        yield opened


def test_the_list_of_runs_has_the_experiments(shown: Pages) -> None:
    shown.runs(*LOSSES)


def test_the_charts_are_of_the_headline_metrics(shown: Pages) -> None:
    shown.charts("pretrain.val_loss", "finetune-classify.test_accuracy", *LOSSES)


def test_the_comparison_has_names_and_headline_metrics_side_by_side(shown: Pages) -> None:
    found = shown.client.search_runs([shown.experiment_id])
    ids = [run.info.run_id for run in found if run.info.run_name in LOSSES]
    shown.compare(ids, *LOSSES, "pretrain.val_loss", *map(str, LOSSES.values()))


def test_a_models_page_has_its_run_its_figures_and_its_version(shown: Pages) -> None:
    model, other = shown.client.search_logged_models([shown.experiment_id])
    assert {model.name, other.name} == {"classifier"}
    shown.model(model.model_id, "classifier", "Ready", "finetune-classify", "test_accuracy", str(ACCURACY))
    shown.page.wait("document.body.innerText.includes('gpt2core-classifier')")
    shown.registered("gpt2core-classifier", "gpt2core-classifier", "Version 1", "Version 2")
