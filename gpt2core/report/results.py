"""Headline metrics: their names, descriptions, and formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# metrics file, key, description, format; an indented description is compared with the row above it
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("pretrain", "val_loss", "validation loss, nats per token", ".3f"),
    ("pretrain", "val_perplexity", "validation perplexity", ".2f"),
    ("pretrain", "bits_per_byte", "bits per byte", ".4f"),
    ("pretrain", "bits_per_byte_floor", "  entropy of the corpus", ".4f"),
    ("pretrain", "trigram_bits_per_byte", "  trigram model", ".4f"),
    ("finetune_classify", "test_accuracy", "test accuracy", ".2%"),
    ("finetune_classify", "characters_test_accuracy", "  baseline: character n-gram TF-IDF", ".2%"),
    ("finetune_classify", "baseline_test_accuracy", "  baseline: word TF-IDF", ".2%"),
    ("finetune_classify", "majority_test_accuracy", "  baseline: most frequent class", ".2%"),
    ("finetune_classify", "before_test_accuracy", "  before fine-tuning", ".2%"),
    ("finetune_classify", "test_f1", "test F1", ".4f"),
    ("finetune_instruct", "val_loss", "validation loss, nats per token", ".3f"),
    ("finetune_instruct", "before_val_loss", "  before fine-tuning", ".3f"),
    ("finetune_instruct", "test_perplexity", "perplexity of the test responses", ".2f"),
    ("finetune_instruct", "before_test_perplexity", "  before fine-tuning", ".2f"),
    ("llm_judge_eval", "mean_score", "mean score, 0 to 100", ".1f"),
    ("llm_judge_eval", "base_score", "  base model", ".1f"),
    ("llm_judge_eval", "echo_score", "  echo of the input", ".1f"),
    ("llm_judge_eval", "nearest_score", "  nearest training answer", ".1f"),
)
NAMES = tuple(dict.fromkeys(row[0] for row in ROWS))
# Fitted to the same splits as the classifier. The model before fine-tuning is not one of them.
ACCURACY_BASELINES = ("characters_test_accuracy", "baseline_test_accuracy", "majority_test_accuracy")


class Headline(NamedTuple):
    """A row of the table of results. Only the first row of a stage names it."""

    stage: str
    description: str
    value: str


def strongest_baseline(metrics: Mapping[str, Any]) -> str | None:
    """Return the key of the baseline with the highest test accuracy in metrics/finetune_classify.json.

    Older files lack some baselines; if all of `ACCURACY_BASELINES` are missing, return None.

    >>> strongest_baseline({"characters_test_accuracy": 0.99, "baseline_test_accuracy": 0.88})
    'characters_test_accuracy'
    """
    present = [key for key in ACCURACY_BASELINES if metrics.get(key) is not None]
    return max(present, key=lambda key: metrics[key], default=None)


def accuracy_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return split, accuracy before, and accuracy after fine-tuning, of the classifier that is kept.

    >>> accuracy_rows({"kept_model": {"before_test_accuracy": 0.5, "test_accuracy": 0.9667}})
    [('test', '50.00%', '96.67%')]
    """
    kept = metrics.get("kept_model", {})
    return [
        (name, f"{kept[f'before_{key}_accuracy']:.2%}", f"{kept[f'{key}_accuracy']:.2%}")
        for name, key in (("training", "train"), ("validation", "val"), ("test", "test"))
        if f"before_{key}_accuracy" in kept and f"{key}_accuracy" in kept
    ]


def headlines(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[Headline]:
    """Yield the rows of `ROWS` that have a value in the files in metrics/, by file stem.

    One row names the strongest baseline of the test accuracy.
    """
    previous = ""
    strongest = strongest_baseline(metrics.get("finetune_classify", {}))
    for name, key, description, form in ROWS:
        value = metrics.get(name, {}).get(key)
        if value is None:
            continue
        if key == "mean_score":
            description += f" ({metrics[name]['judge']})"
        elif key == strongest:
            description = description.replace("baseline:", "strongest baseline:")
        yield Headline("" if name == previous else name.replace("_", "-"), description, format(value, form))
        previous = name
