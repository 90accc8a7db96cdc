"""The files in metrics/: every result of a stage, and the few that DVC shows.

DVC makes a column of each number in a file of metrics, so only the headline metrics are in files that dvc.yaml calls
metrics. Their names are short, and each is there once, so that `dvc exp show` needs no path to tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2core import files

FOLDER, HEADLINE_FOLDER = Path("metrics"), Path("metrics/headline")
# By the stage's file: the name that DVC shows, and the key in the file of all results.
HEADLINES: dict[str, dict[str, str]] = {
    "pretrain": {
        "pretrain_loss": "val_loss",
        "perplexity": "val_perplexity",
        "bits_per_byte": "bits_per_byte",
        "trigram_bits": "trigram_bits_per_byte",
    },
    "finetune_classify": {
        "accuracy": "test_accuracy",
        "accuracy_sd": "test_accuracy_sd",
        "tfidf_accuracy": "characters_test_accuracy",
        "f1": "test_f1",
        "roc_auc": "test_roc_auc",
    },
    "finetune_instruct": {
        "instruct_loss": "val_loss",
        "base_instruct_loss": "before_val_loss",
        "answer_perplexity": "test_perplexity",
    },
    "llm_judge_eval": {
        "score": "mean_score",
        "score_low": "ci_low",
        "score_high": "ci_high",
        "base_score": "base_score",
        "nearest_score": "nearest_score",
    },
    "tokenize": {"tokens": "train_tokens", "bytes_per_token": "bytes_per_token"},
}


def write_metrics(name: str, metrics: Mapping[str, Any]) -> None:
    """Write all results of a stage to metrics/NAME.json, and its headline metrics to metrics/headline/NAME.json."""
    headline = {short: metrics[key] for short, key in HEADLINES[name].items() if metrics.get(key) is not None}
    files.write_json(FOLDER / f"{name}.json", metrics)
    files.write_json(HEADLINE_FOLDER / f"{name}.json", headline)
