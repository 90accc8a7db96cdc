"""The committed metrics of the default profile are those that the project promises."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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
