"""dvc.yaml's outputs contain no picture and nothing about the machine; its plots draw from the tables that exist."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dvc_render.vega_templates
import pytest
import yaml

ROOT = Path(__file__).parent.parent
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
EXPERIMENTS = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
PICTURES = {".svg", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf", ".html"}


def outputs(stage: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of a stage's outs, metrics, and plots."""
    stage = stage.get("do", stage)
    for kind in ("outs", "metrics", "plots"):
        for out in stage.get(kind, ()):
            yield out if isinstance(out, str) else next(iter(out))


@pytest.mark.parametrize("name", DVC["stages"])
def test_no_output_is_a_picture(name: str) -> None:
    paths = [*outputs(DVC["stages"][name])]
    assert paths
    assert [path for path in paths if Path(path).suffix.lower() in PICTURES] == []


def test_git_keeps_exactly_the_outputs_that_dvc_does_not_cache() -> None:
    """A picture, or a file that says which machine ran a stage, would be one more."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "metrics"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout  # fmt: skip
    kept = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    assert kept == {path for stage in DVC["stages"].values() for path in outputs(stage) if path.startswith("metrics/")}


def test_the_docs_list_the_stages_that_dvc_can_freeze() -> None:
    """DVC writes a frozen stage into dvc.yaml, and refuses one that has a param in it, or a loop."""
    plain = [name for name, stage in DVC["stages"].items() if "foreach" not in stage and "${" not in json.dumps(stage)]
    (paragraph,) = re.findall(r"^\*\*Skipping a stage.*?\n\n", EXPERIMENTS, re.MULTILINE | re.DOTALL)
    (sentence,) = re.findall(r"it freezes only\s+(.*?)\. ", paragraph, re.DOTALL)
    assert re.findall("`([^`]+)`", sentence) == plain


PLOTS = {title: plot for entry in DVC["plots"] for title, plot in entry.items()}
TEXTS = {"mistakes.csv"}  # tables of texts, which have nothing to plot


def columns(plot: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each file that a plot draws, with each column."""
    for path, names in plot["y"].items():
        for name in [names] if isinstance(names, str) else names:
            yield path, name
        if "x" in plot:
            yield path, plot["x"]


@pytest.mark.parametrize("title", PLOTS)
def test_a_plot_draws_columns_that_exist(title: str) -> None:
    """DVC leaves out a plot whose column is missing, and does not fail."""
    for path, column in columns(PLOTS[title]):
        with (ROOT / path).open(newline="", encoding="utf-8") as file:
            rows = [*csv.DictReader(file)]
        assert any(row[column] for row in rows), f"{path}: {column}"


@pytest.mark.parametrize("title", PLOTS)
def test_a_plot_has_a_template_and_units_in_plain_words(title: str) -> None:
    plot = PLOTS[title]
    built_in = {template.DEFAULT_NAME for template in dvc_render.vega_templates.TEMPLATES}
    own = {path.stem: json.loads(path.read_text()) for path in (ROOT / ".dvc/plots").glob("*.json")}
    assert plot["template"] in built_in | own.keys()
    assert not built_in & own.keys(), "a template of this project hides one of DVC's"
    labels = [plot.get("x_label", plot.get("x")), plot.get("y_label", next(iter(plot["y"].values())))]
    for label in labels:
        assert isinstance(label, str)
        assert "_" not in label
        assert not re.search(r"s a \w", label), "rates take the word per"


def test_every_table_is_drawn() -> None:
    drawn = {path for plot in PLOTS.values() for path in plot["y"]}
    tables = {path for stage in DVC["stages"].values() for path in outputs(stage) if path.endswith(".csv")}
    assert drawn == {path for path in tables if Path(path).name not in TEXTS}


@pytest.mark.parametrize("name", sorted(set(DVC["stages"]) - {"fetch-openai-weights", "download-data"}))
def test_a_stages_run_has_the_params_that_decide_its_results(name: str) -> None:
    """Else `sync-mlflow` would add them from dvc.lock to a run that is complete."""
    stage = DVC["stages"][name]
    params = stage.get("params", stage.get("do", {}).get("params", []))
    source = (ROOT / f"stages/{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    sections = re.findall(r'"([^"]+)"', re.search(r"sections ?= ?\(([^)]*)\)", source)[1])
    for param in params:
        assert any(param == known or param.startswith(f"{known}.") for known in ("seed", *sections)), param
