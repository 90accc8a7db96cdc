"""Models side by side: figures by their formulas, intervals by SciPy's bootstrap."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF
from scipy import stats

from gpt2core.errors import UserError
from gpt2core.evaluation.checkpoint_table import CheckpointComparison
from gpt2core.evaluation.comparison import Answers, compare_models, read_checkpoints
from gpt2core.evaluation.judges import Item
from gpt2core.evaluation.judges.chrf import ChrfJudge

N = 60
RNG = np.random.default_rng(0)
ENTRIES = [
    {"instruction": f"Name {n}.", "input": "", "output": f"It is the number {n} of {2 * n} lamps."} for n in range(N)
]
TOKENS = RNG.integers(2, 20, N).tolist()
HARD = RNG.normal(2.0, 0.5, N)  # how hard an entry is for every model, nats a token


def answers(name: str, worse: float, right: float, seed: int | None = None) -> Answers:
    nats = TOKENS * (HARD + worse + RNG.normal(0, 0.02, N))
    said = [entry["output"] if RNG.random() < right else entry["output"][:9] for entry in ENTRIES]
    return Answers(name, nats.tolist(), said, seed)


MODELS = [answers("base", 3.0, 0.1), answers("a", 0.0, 0.8, 1), answers("b", 0.1, 0.7, 2), answers("c", 0.2, 0.6, 5)]


@pytest.fixture(scope="module")
def table() -> CheckpointComparison:
    return compare_models(ENTRIES, TOKENS, MODELS, ChrfJudge(), "a", 1000, 0)


def score(model: Answers) -> np.ndarray:
    chrf = CHRF(word_order=2)
    pairs = zip(model.responses, ENTRIES, strict=True)
    return np.array([chrf.sentence_score(response, [entry["output"]]).score for response, entry in pairs])


def interval(*columns: np.ndarray, of: object) -> list[float]:
    """SciPy's 95% percentile interval of a statistic of items."""
    found = stats.bootstrap(
        columns, of, paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=1
    ).confidence_interval  # fmt: skip
    return [found.low, found.high]


def ends(row: dict[str, float], name: str) -> list[float]:
    return [row[f"{name}_ci_low"], row[f"{name}_ci_high"]]


def test_values_and_intervals_are_those_of_the_formulas(table: CheckpointComparison) -> None:
    tokens, reference = np.array(TOKENS), MODELS[1]
    assert (table.judge, list(table.checkpoints)) == ("chrf", ["base", "a", "b", "c"])
    for row, model in zip(table.checkpoints.values(), MODELS, strict=True):
        nats, scores = np.array(model.nats), score(model)
        assert row["loss"] == pytest.approx(nats.sum() / tokens.sum(), abs=1e-4)
        exponentials = [math.exp(row["loss"]), *(math.exp(nat) for nat in ends(row, "loss"))]
        assert [row["perplexity"], *ends(row, "perplexity")] == pytest.approx(exponentials, rel=2e-4)
        assert row["score"] == pytest.approx(scores.mean(), abs=1e-4)
        ratio = lambda a, b: a.sum() / b.sum()  # noqa: E731
        assert ends(row, "loss") == pytest.approx(interval(nats, tokens, of=ratio), abs=0.03)
        assert ends(row, "score") == pytest.approx(interval(scores, of=np.mean), abs=1.0)
        if model is reference:
            assert not [name for name in row if "difference" in name]
            continue
        difference = (nats - np.array(reference.nats)).sum() / tokens.sum()
        assert row["loss_difference"] == pytest.approx(difference, abs=1e-4)
        expected = interval(scores - score(reference), of=np.mean)
        assert ends(row, "score_difference") == pytest.approx(expected, abs=1.5)


def test_what_is_hard_for_both_does_not_hide_a_difference(table: CheckpointComparison) -> None:
    a, b = table.checkpoints["a"], table.checkpoints["b"]
    assert b["loss_ci_low"] < a["loss"] < b["loss_ci_high"]  # the intervals overlap
    assert b["loss_difference_ci_low"] > 0.05


def test_the_seeds_ends_have_mean_and_deviation_as_numpys_and_students(table: CheckpointComparison) -> None:
    metrics = table.metrics()
    losses = [metrics["checkpoints"][name]["loss"] for name in "abc"]
    found = metrics["over_seeds"]["loss"]
    low, high = stats.t.interval(0.95, 2, np.mean(losses), stats.sem(losses))
    assert [found[key] for key in ("mean", "sd", "ci_low", "ci_high")] == pytest.approx(
        [np.mean(losses), np.std(losses, ddof=1), low, high], abs=1e-4
    )
    assert set(metrics["over_seeds"]) == {"loss", "perplexity", "score"}
    assert (
        "score_difference" not in metrics["checkpoints"]["a"]
        and "score_difference_ci_low" in (metrics["checkpoints"]["b"])
    )


def test_the_lines_are_the_metrics(table: CheckpointComparison) -> None:
    metrics = table.metrics()
    said, head, *lines = table.lines()
    assert said == f"scores by {table.judge}, differences to a"
    assert head.split() == ["loss", "perplexity", "score", "loss,", "difference", "score,", "difference"]
    row, loss = metrics["checkpoints"]["base"], metrics["over_seeds"]["loss"]
    assert lines[0].startswith(f"base  {row['loss']:.3f} ({row['loss_ci_low']:.3f} to {row['loss_ci_high']:.3f})")
    assert lines[4].startswith(f"loss over the seeds: {loss['mean']:.3f} ± {loss['sd']:.3f} (95%")
    assert len(lines) == 4 + 3 and max(map(len, lines)) <= 130


def test_only_what_was_scored_of_both_is_a_difference() -> None:
    class Patchy(ChrfJudge):
        skipped = iter((2, 3))

        def score(self, items: Sequence[Item]) -> list[float | None]:
            every = next(self.skipped)
            return [None if n % every == 0 else found for n, found in enumerate(super().score(items))]

    a, b = MODELS[1], MODELS[2]
    row = compare_models(ENTRIES, TOKENS, [a, b], Patchy(), "a", 10, 0).checkpoints["b"]
    both = [n for n in range(N) if n % 2 and n % 3]
    assert row["score_difference"] == pytest.approx((score(b) - score(a))[both].mean(), abs=1e-4)

    class Silent(ChrfJudge):
        def score(self, items: Sequence[Item]) -> list[float | None]:
            return [None] * len(items)

    rows = compare_models(ENTRIES, TOKENS, [a, b], Silent(), "a", 10, 0).checkpoints
    assert "score" not in rows["a"] and "score_difference" not in rows["b"] and rows["b"]["loss_difference"]


def test_the_file_of_the_stage_is_read(tmp_path: Path) -> None:
    assert read_checkpoints(tmp_path) is None
    rows = [
        {"seed": seed, "step": step, "val_loss": 1.0, "test_loss": 1.0, "responses": ["x", "y"], "nats": [1.0, 2.0]}
        for seed, step in ((None, 0), (7, 2), (7, 4), (3, 2), (3, 4))
    ]
    path = tmp_path / "checkpoints.json"
    path.write_text(json.dumps({"test_tokens": [1, 2], "checkpoints": rows}))
    tokens, models, kept = read_checkpoints(tmp_path, 1) or ([], [], "")
    assert (tokens, kept) == ([1], "seed_7_step_4")
    assert [(m.name, m.seed) for m in models] == [
        ("base", None), ("seed_7_step_2", None), ("seed_7_step_4", 7), ("seed_3_step_2", None), ("seed_3_step_4", 3),
    ]  # fmt: skip
    assert models[0] == Answers("base", [1.0], ["x"])
    path.write_text('{"test_tokens": [1], "checkpoints": [{"seed": null}]}')
    with pytest.raises(UserError, match=r"checkpoints.json: is damaged .*'nats'.*dvc repro finetune-instruct"):
        read_checkpoints(tmp_path)
    path.write_text(json.dumps({"test_tokens": [1, 2, 3], "checkpoints": rows}))
    with pytest.raises(UserError, match="checkpoints.json: is damaged .*not all have as many entries"):
        read_checkpoints(tmp_path)
