"""MLflow's own pages of a project's store in Chromium: opened as a person would, and pictures for the docs.

python -m tests.tracking.mlflow_pages PROJECT docs/img
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from tests.tracking.mlflow_server import mlflow_server
from tests.ui.chromium import Tab, tab

PAGE_S = 120
SETTLE_S = 5  # until everything is drawn


@contextlib.contextmanager
def server(root: Path) -> Iterator[str]:
    """The address of `mlflow ui` over the project's store, as `make mlflow` starts it."""
    with mlflow_server("ui", root) as port:
        yield f"http://127.0.0.1:{port}"


# What the browser keeps of an earlier visit: the assistant was closed, and the side bar is that of training.
VISITED = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
"""
WIDTH = 1200


class Pages:
    """The pages of one store. Each method opens one, and waits until all the texts that it is given are on it."""

    def __init__(self, page: Tab, address: str) -> None:
        from mlflow import MlflowClient

        self.page, self.address = page, address
        self.client = MlflowClient(tracking_uri=address)
        self.experiment_id = self.client.get_experiment_by_name("gpt2core").experiment_id
        page.call("Page.addScriptToEvaluateOnNewDocument", source=VISITED)

    def open(self, path: str, *texts: str) -> None:
        self.page.open("about:blank", WIDTH)  # from one page to the next by what follows the # alone nothing is loaded
        self.page.open(f"{self.address}/#/{path}", WIDTH)
        for text in texts:
            self.page.wait(f"document.body.innerText.includes({json.dumps(text)})", PAGE_S)

    def runs(self, *texts: str) -> None:
        self.open(f"experiments/{self.experiment_id}/runs", *texts)

    def charts(self, *texts: str) -> None:
        self.open(f"experiments/{self.experiment_id}/runs?compareRunsMode=CHART", *texts)

    def compare(self, run_ids: list[str], *texts: str) -> None:
        asked = urlencode({"runs": json.dumps(run_ids), "experiments": json.dumps([self.experiment_id])})
        self.open(f"compare-runs?{asked}", *texts)

    def model(self, model_id: str, *texts: str) -> None:
        self.open(f"experiments/{self.experiment_id}/models/{model_id}", *texts)

    def registered(self, name: str, *texts: str) -> None:
        self.open(f"models/{name}", *texts)


@contextlib.contextmanager
def pages(address: str) -> Iterator[Pages]:
    with tab() as page:
        yield Pages(page, address)


HEADLINES = "pretrain.val_loss|classify.test_accuracy$|mean_score"
NO_TOOLBARS = "document.head.insertAdjacentHTML('beforeend', '<style>.modebar { display: none }</style>')"


def take(shown: Pages, out: Path) -> None:
    """The docs' pictures: list, charts and comparison of the pipeline runs, and the newest classifier's page."""
    page = shown.page
    found = shown.client.search_runs([shown.experiment_id], order_by=["attributes.start_time DESC"])
    parents = [run.info for run in found if "mlflow.parentRunId" not in run.data.tags]
    models = shown.client.search_logged_models([shown.experiment_id], filter_string="name = 'classifier'")

    def picture(name: str, height: int, width: int = WIDTH) -> None:
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        time.sleep(SETTLE_S)
        page.screenshot(out / f"{name}.png")

    shown.runs("Run Name")
    picture("mlflow-runs", 500)
    shown.charts("Model metrics", *(run.run_name for run in parents))
    page.run("document.querySelector('input[placeholder=\"Search metric charts\"]').focus()")
    page.call("Input.insertText", text=HEADLINES)
    page.run(NO_TOOLBARS)  # which a person sees over the chart at the mouse alone
    picture("mlflow-charts", 680, width=1500)
    shown.compare([run.run_id for run in parents], "Show diff only", *(run.run_name for run in parents))
    page.run("document.querySelectorAll('[role=switch]').forEach(each => each.click())")
    picture("mlflow-compare", 1130)
    shown.model(models[0].model_id, "finetune-classify", "test_accuracy")
    picture("mlflow-model", 900)


def main(root: Path, out: Path) -> None:
    """Take the pictures of a project's own store."""
    with server(root) as address, pages(address) as shown:
        take(shown, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
