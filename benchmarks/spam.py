"""Accuracy on real SMS spam from your own base, for each recipe over seeds, compared with TF-IDF on the same splits.

    python -m benchmarks.spam MIRROR --base models/pretrained --profile novels
    python -m benchmarks.spam MIRROR --size 124M --seeds 1 2 3 --set epochs=3 --set lr=0.0003      (random weights)

The SMS Spam Collection without duplicates, balanced, with another split for each seed. A recipe is the profile's
section `finetune_classify` with the changes of --set; several values of one --set, separated by `,`, make several
recipes. The results are test accuracies in percent: mean, standard deviation, and the 95% interval of the mean
(Student's), and the median time of a seed, from the first step to the last prediction. The recipes are compared on test
texts, so this is a table of what was tried, not a choice.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import machine
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.config.finetune_classify import FinetuneClassify
from gpt2core.config.presets import PRESETS
from gpt2core.evaluation.metrics.classification import classification_metrics, tfidf_baseline
from gpt2core.evaluation.metrics.intervals import mean_std_ci
from gpt2core.params import load_params
from gpt2core.tasks import labeled_texts
from gpt2core.training.classify import finetune_classify

PROFILES = machine.ROOT / "profiles"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("mirror", type=Path, help="the folder that holds sms-spam-collection and gpt2-bpe")
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--base", type=Path, help="a model directory")
    whose.add_argument("--size", choices=list(PRESETS), help="in its place: random weights of a size")
    parser.add_argument("--profile", default="novels", help="whose section finetune_classify the recipes start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE[,VALUE…]", help="such as lr=0.001,0.0003"
    )
    given = parser.parse_args(arguments)
    section = load_params(PROFILES / f"{given.profile}.yaml").finetune_classify
    messages = labeled_texts.read_table(given.mirror / "sms-spam-collection/SMSSpamCollection")
    labels = labeled_texts.classes(messages)
    splits = {
        seed: labeled_texts.split(messages, section.val_fraction, section.test_fraction, seed) for seed in given.seeds
    }
    print(machine.description())
    first = splits[given.seeds[0]]
    print(f"{len(first.train)} messages to train on, {len(first.val)} to validate, {len(first.test)} to test")
    for name, characters in (("TF-IDF of words", False), ("TF-IDF of characters", True)):
        scores = [
            tfidf_baseline(split.train, split.test, labels, seed, characters=characters)["accuracy"]
            for seed, split in splits.items()
        ]
        print(row(name, scores))
    with tempfile.TemporaryDirectory() as folder:
        base = given.base or Path(folder) / "base"
        if given.size:
            save_model(base, machine.random_model(given.size), machine.gpt2_tokenizer(given.mirror))
        for name, recipe in recipes(section, given.set):
            scores, times_s = [], []
            for seed, split in splits.items():
                took, tuned = machine.timed(functools.partial(finetune_classify, recipe, seed, base, labels, split))
                times_s.append(took.wall)
                truth = [label for label, _ in split.test]
                scores.append(classification_metrics(truth, tuned.after, labels)["accuracy"])
            print(row(name, scores, times_s), flush=True)


def recipes(section: FinetuneClassify, changes: Sequence[str]) -> Iterator[tuple[str, FinetuneClassify]]:
    """Yield each combination of the values, with its name.

    >>> section = load_params(PROFILES / "novels.yaml").finetune_classify
    >>> [(name, recipe.epochs) for name, recipe in recipes(section, ["epochs=2,3"])]
    [('epochs=2', 2), ('epochs=3', 3)]
    """
    keys = [change.partition("=")[0] for change in changes]
    for values in itertools.product(*(change.partition("=")[2].split(",") for change in changes)):
        named = dict(zip(keys, values, strict=True))
        changed: dict[str, Any] = {key: yaml.safe_load(value) for key, value in named.items()}
        name = " ".join(f"{key}={value}" for key, value in named.items()) or "as in the profile"
        yield name, FinetuneClassify.model_validate(section.model_dump() | changed)


def row(name: str, scores: Sequence[float], times_s: Sequence[float] = ()) -> str:
    """Return a line of the table.

    >>> row("lr=0.001", [0.96, 0.97, 0.98], [20.0, 22.0, 21.0])
    'lr=0.001                          97.0 ± 1.0 (94.5 to 99.5)  96.0, 97.0, 98.0  21 s a seed'
    """
    line = f"{name:<32}  {100 * statistics.mean(scores):.1f}"
    if len(scores) > 1:
        _, sd, low, high = (100 * value for value in mean_std_ci(scores))
        line += f" ± {sd:.1f} ({low:.1f} to {min(100.0, high):.1f})"
    line += "  " + ", ".join(f"{100 * score:.1f}" for score in scores)
    return line + (f"  {statistics.median(times_s):.0f} s a seed" if times_s else "")


if __name__ == "__main__":
    main()
