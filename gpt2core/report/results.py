"""The headline metrics: which they are, what they say, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# metrics file, key, what it says, how it is written
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("pretrain", "val_loss", "validation loss, nats a token", ".3f"),
    ("pretrain", "val_perplexity", "validation perplexity", ".2f"),
    ("pretrain", "bits_per_byte", "bits per byte", ".4f"),
    ("pretrain", "bits_per_byte_floor", "  the corpus's own entropy", ".4f"),
    ("pretrain", "trigram_bits_per_byte", "  a trigram model", ".4f"),
    ("finetune_classify", "test_accuracy", "test accuracy", ".2%"),
    ("finetune_classify", "test_f1", "test F1", ".4f"),
    ("finetune_classify", "before_test_accuracy", "  before fine-tuning", ".2%"),
    ("finetune_classify", "baseline_test_accuracy", "  TF-IDF + logistic regression", ".2%"),
    ("finetune_instruct", "val_loss", "validation loss, nats a token", ".3f"),
    ("finetune_instruct", "before_val_loss", "  before fine-tuning", ".3f"),
    ("finetune_instruct", "test_perplexity", "perplexity of the test responses", ".2f"),
    ("finetune_instruct", "before_test_perplexity", "  before fine-tuning", ".2f"),
    ("llm_judge_eval", "mean_score", "mean score, 0 to 100", ".1f"),
    ("llm_judge_eval", "base_score", "  of the base model", ".1f"),
    ("llm_judge_eval", "echo_score", "  of echoing the input", ".1f"),
    ("llm_judge_eval", "nearest_score", "  of the nearest training answer", ".1f"),
)
NAMES = tuple(dict.fromkeys(row[0] for row in ROWS))


class Headline(NamedTuple):
    """A row of the table of results."""

    stage: str
    meaning: str
    value: str


def headlines(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[Headline]:
    """The rows of `ROWS` whose values are there.

    Args:
        metrics: what the files of metrics/ hold, by their stems.
    """
    for name, key, meaning, form in ROWS:
        value = metrics.get(name, {}).get(key)
        if value is not None:
            judge = f" ({metrics[name]['judge']})" if key == "mean_score" else ""
            yield Headline(name.replace("_", "-"), meaning + judge, format(value, form))
