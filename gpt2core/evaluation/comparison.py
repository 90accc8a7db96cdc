"""Several models' responses to one test set in one table: seeds and checkpoints of a training, or model directories.

All models answer the same entries, so the table also has the differences to one of them, entry by entry. Intervals of
differences are narrower than those of values, because an entry that is hard for one model is hard for the others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.evaluation.checkpoint_table import DIGITS, CheckpointComparison
from gpt2core.evaluation.judges import Judge
from gpt2core.evaluation.llm_judge_eval import Entry, items
from gpt2core.evaluation.metrics.intervals import bootstrap_interval, drop_missing, mean, mean_std_ci, rounded

_REMEDY = "write it again with: dvc repro finetune-instruct"


class Answers(NamedTuple):
    """A model's or checkpoint's results on the test set."""

    name: str
    nats: Sequence[float]  # [n], loss of each entry's reference response, summed over its tokens
    responses: Sequence[str]  # [n], the model's own
    seed: int | None = None  # of the training, if this is its last checkpoint


def compare_models(
    entries: Sequence[Entry],
    test_tokens: Sequence[int],
    models: Sequence[Answers],
    judge: Judge,
    reference: str,
    bootstrap_samples: int,
    seed: int,
) -> CheckpointComparison:
    """Score all models' responses, and compare each model with the reference.

    `test_tokens` has the number of tokens of each entry's reference response, with the end of text. The bootstrap
    draws entries, not seeds.

    Raises:
        UserError: the judge failed.
    """

    def loss(nats: Sequence[float]) -> list[float]:
        interval = bootstrap_interval(nats, bootstrap_samples, seed, weights=test_tokens)
        return [math.fsum(nats) / sum(test_tokens), *interval]

    def score(values: Sequence[float]) -> list[float]:
        return [mean(values), *bootstrap_interval(values, bootstrap_samples, seed)] if values else []

    scores = {model.name: judge.score(items(entries, model.responses)) for model in models}
    base_nats = next(model.nats for model in models if model.name == reference)
    checkpoints = {}
    for model in models:
        row = {"loss": loss(model.nats), "score": score(drop_missing(scores[model.name]))}
        row["perplexity"] = [math.exp(min(nats, 700.0)) for nats in row["loss"]]
        if model.name != reference:
            row["loss_difference"] = loss([a - b for a, b in zip(model.nats, base_nats, strict=True)])
            both = zip(scores[model.name], scores[reference], strict=True)
            row["score_difference"] = score([a - b for a, b in both if a is not None and b is not None])
        checkpoints[model.name] = rounded(
            {
                f"{name}{end}": value
                for name in DIGITS
                for end, value in zip(("", "_ci_low", "_ci_high"), row.get(name, ()), strict=False)
            }
        )
    return CheckpointComparison(judge.name, reference, checkpoints, _over_seeds(models, checkpoints))


def _over_seeds(
    models: Sequence[Answers], checkpoints: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return the statistics of the last checkpoints of several seeds."""
    rows = [checkpoints[model.name] for model in models if model.seed is not None]
    if len(rows) < 2:
        return {}
    return {
        name: rounded(mean_std_ci([row[name] for row in rows])._asdict())
        for name in ("loss", "perplexity", "score")
        if all(name in row for row in rows)
    }


def read_checkpoints(
    folder: str | os.PathLike[str], max_items: int | None = None
) -> tuple[list[int], list[Answers], str] | None:
    """Read what `finetune-instruct` writes with several seeds or checkpoints, of the first `max_items` test entries.

    Returns:
        The number of tokens of each reference response, the models' answers, and the name of the model that is kept; or
        None if there is only one model.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder, "checkpoints.json")
    if not path.exists():
        return None
    content = files.read_json(path)
    try:
        # The last row of a seed is that of its kept model.
        last_steps = {row["seed"]: row["step"] for row in content["checkpoints"] if row["seed"] is not None}
        models = [
            Answers(
                "base" if row["seed"] is None else f"seed_{row['seed']}_step_{row['step']}",
                row["nats"][:max_items],
                row["responses"][:max_items],
                row["seed"] if row["step"] == last_steps.get(row["seed"]) else None,
            )
            for row in content["checkpoints"]
        ]
        kept_name = next(model.name for model in models if model.seed is not None)
        tokens = content["test_tokens"][:max_items]
        if {len(tokens)} != {len(column) for model in models for column in (model.nats, model.responses)}:
            raise ValueError("not all have as many entries")
        return tokens, models, kept_name
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {error}); {_REMEDY}") from None


def compare_checkpoints(
    folder: str | os.PathLike[str], entries: Sequence[Entry], judge: Judge, bootstrap_samples: int, seed: int
) -> CheckpointComparison | None:
    """Compare the checkpoints in `folder` on the first test entries; see `compare_models`.

    Returns:
        The table, or None if there is only one model.

    Raises:
        UserError: the file of the checkpoints is damaged, or the judge failed.
    """
    if (checkpoints := read_checkpoints(folder, len(entries))) is None:
        return None
    test_tokens, models, kept_name = checkpoints
    return compare_models(entries, test_tokens, models, judge, kept_name, bootstrap_samples, seed)
