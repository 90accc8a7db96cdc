"""The committed metrics of the default profile meet the project's targets, and the README shows them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpt2core.report.results import strongest_baseline

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks/records/seeds.json"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def committed(name: str) -> dict:
    done = subprocess.run(
        ["git", "show", f"HEAD:metrics/{name}.json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_model_comes_near_the_entropy_of_the_corpus_and_a_trigram_does_not() -> None:
    metrics = committed("pretrain")
    floor = metrics["bits_per_byte_floor"]
    assert floor < metrics["bits_per_byte"] <= 1.25 * floor
    assert metrics["trigram_bits_per_byte"] >= 1.4 * floor


def test_the_classifier_reads_what_words_alone_do_not_tell() -> None:
    metrics = committed("finetune_classify")
    assert len(metrics["test_accuracy_by_seed"]) == 3
    assert metrics["test_accuracy"] >= 0.97
    assert metrics["baseline_test_accuracy"] <= 0.95
    assert metrics["before_test_accuracy"] < 0.7


@pytest.mark.parametrize("baseline", ["echo_score", "nearest_score", "base_score"])
def test_the_responses_are_far_above_what_little_effort_scores(baseline: str) -> None:
    metrics = committed("llm_judge_eval")
    assert metrics["mean_score"] >= max(60, metrics[baseline] + 20)
    assert metrics["coverage"] == 1


def test_instruction_tuning_lowers_the_loss() -> None:
    metrics = committed("finetune_instruct")
    assert metrics["val_loss"] < metrics["before_val_loss"]


# -- The README ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Load tools/readme.py, which is no package."""
    spec = importlib.util.spec_from_file_location("readme_tool", ROOT / "tools/readme.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_committed(path: str) -> Any:
    done = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_readme_shows_the_committed_results(tool: ModuleType) -> None:
    assert tool.with_figures(README, read_committed) == README, "run: python tools/readme.py"


def test_each_figure_of_the_readme_comes_from_a_file(tool: ModuleType) -> None:
    """Other results give another README, with each of these numbers in it."""
    other = {
        "pretrain": {"bits_per_byte": 0.1171, "bits_per_byte_floor": 0.1, "trigram_bits_per_byte": 0.7777},
        "finetune_classify": {
            "test_accuracy": 0.911, "baseline_test_accuracy": 0.822, "before_test_accuracy": 0.433,
            "characters_test_accuracy": 0.944,
        },
        "finetune_instruct": {"val_loss": 0.555, "before_val_loss": 6.66},
        "llm_judge_eval": {
            "mean_score": 77.1, "ci_low": 70.2, "ci_high": 80.3, "base_score": 1.4, "echo_score": 2.5,
            "nearest_score": 3.6,
        },
    }  # fmt: skip
    files = {f"metrics/{name}.json": read_committed(f"metrics/{name}.json") | rows for name, rows in other.items()}
    files["metrics/samples.json"] = [{"text": "first"}, {"text": "One. Two! Three? Four. Five. Six."}]
    text = tool.with_figures(README, lambda path: files.get(path) or read_committed(path))
    for shown in (
        "0.1171", "1.17 ×", "0.7777", "91.1%", "82.2%", "43.3%", "94.4%", "0.555", "6.66", "77.1", "70.2 to 80.3",
        "base 1.4", "input 2.5", "answer 3.6", "> One. Two! Three? Four. Five.\n",
    ):  # fmt: skip
        assert shown in text and shown not in README


def test_the_strongest_baseline_is_the_one_that_the_readme_names() -> None:
    assert strongest_baseline(committed("finetune_classify")) == "characters_test_accuracy"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_the_record_of_seeds_agrees_with_itself() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["seeds"] == [1, 2, 3, 4, 5]
    for figure in record["metrics"].values():
        values = list(figure["values"].values())
        assert list(figure["values"]) == ["1", "2", "3", "4", "5"] and figure["n"] == 5
        assert figure["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert figure["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert figure["ci_low"] <= figure["mean"] <= figure["ci_high"]
        half_width = (figure["ci_high"] - figure["ci_low"]) / 2
        assert half_width == pytest.approx(
            2.776445 * figure["sd"] / 5**0.5, rel=1e-6, abs=3e-6
        )  # Student's t, 4 degrees of freedom
