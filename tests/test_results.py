"""The committed metrics of the default profile meet the project's targets, and the README shows them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

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


# -- The README's table ----------------------------------------------------------------------------------------------


def cells(figure: str) -> tuple[str, str, str]:
    """Return value, comparison, and spread over seeds of the figure whose name starts with `figure`."""
    table = README.partition("## What you then see")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    (row,) = (row for row in rows if row[1].startswith(figure))
    return row[2], row[3], row[4]


def test_the_readme_shows_the_bits_per_byte() -> None:
    metrics = committed("pretrain")
    bits, floor, trigram = (metrics[key] for key in ("bits_per_byte", "bits_per_byte_floor", "trigram_bits_per_byte"))
    assert cells("bits per byte")[:2] == (
        f"{bits:.4f} ({bits / floor:.2f} × the entropy of the corpus, {floor:.4f})",
        f"Kneser-Ney trigram {trigram:.4f} ({trigram / floor:.2f} ×)",
    )


def test_the_readme_shows_the_accuracy_and_its_strongest_baseline() -> None:
    metrics = committed("finetune_classify")
    assert strongest_baseline(metrics) == "characters_test_accuracy"
    assert cells("test accuracy")[:2] == (
        f"{metrics['test_accuracy']:.1%}",
        f"words (TF-IDF + logistic regression) {metrics['baseline_test_accuracy']:.1%}; "
        f"before fine-tuning {metrics['before_test_accuracy']:.1%}",
    )
    assert cells("strongest baseline: character n-grams")[0] == f"{metrics['characters_test_accuracy']:.1%}"


def test_the_readme_shows_the_loss_of_instruction_tuning() -> None:
    metrics = committed("finetune_instruct")
    assert cells("validation loss")[:2] == (
        f"{metrics['val_loss']:.3f}",
        f"before fine-tuning {metrics['before_val_loss']:.2f}",
    )


def test_the_readme_shows_the_judge_score() -> None:
    metrics = committed("llm_judge_eval")
    assert cells("mean score")[:2] == (
        f"{metrics['mean_score']:.1f} ({metrics['ci_low']:.1f} to {metrics['ci_high']:.1f})",
        f"base {metrics['base_score']:.1f}, echo {metrics['echo_score']:.1f}, "
        f"nearest training answer {metrics['nearest_score']:.1f}",
    )


# start of the figure's name, its metric, scale, decimals, unit
SPREADS = [
    ("bits per byte", "pretrain.bits_per_byte", 1, 4, ""),
    ("test accuracy", "finetune-classify.test_accuracy", 100, 1, "%"),
    ("strongest baseline: character n-grams", "finetune-classify.characters_test_accuracy", 100, 1, "%"),
    ("mean score", "llm-judge-eval.mean_score", 1, 1, ""),
]


@pytest.mark.parametrize(("figure", "metric", "scale", "decimals", "unit"), SPREADS)
def test_the_readme_shows_the_spread_over_seeds(figure: str, metric: str, scale: int, decimals: int, unit: str) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))["metrics"][metric]
    mean, sd, low, high = (f"{scale * record[key]:.{decimals}f}" for key in ("mean", "sd", "ci_low", "ci_high"))
    assert cells(figure)[2] == f"{mean}{unit} ± {sd} ({low} to {high})"


def test_the_record_of_seeds_agrees_with_itself() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["seeds"] == [1, 2, 3, 4, 5]
    assert {metric for _, metric, *_ in SPREADS} <= record["metrics"].keys()
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
