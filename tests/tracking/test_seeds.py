"""Statistics over seeds, from states as commits store them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gpt2core.tracking.revisions import Revision
from gpt2core.tracking.seeds import seed_groups
from gpt2core.tracking.state import State


def target(seed: int, lr: float, loss: float, at_ms: int = 0, **more: float) -> Revision:
    params = {"seed": seed, "pretrain": {"lr": lr, "steps": 5}}
    return Revision("x", State(params, {}, {"pretrain": {"val_loss": loss, **more}}), lambda path: None, "", at_ms)


def test_groups_are_of_equal_params_and_their_figures_numpys() -> None:
    losses = {0.1: [3.0, 2.5, 2.75], 0.2: [1.0, 4.0]}
    runs = [target(seed, lr, loss) for lr, values in losses.items() for seed, loss in enumerate(values)]
    first, second = seed_groups([*reversed(runs), target(9, 0.3, 7.0)])
    by_lr = {group.params["pretrain.lr"]: group for group in (first, second)}
    assert first.params.keys() == {"pretrain.lr"}, "only what tells them apart"
    for lr, values in losses.items():
        (figure,) = by_lr[lr].figures
        assert by_lr[lr].seeds == list(range(len(values)))
        assert (figure.metric, figure.n, figure.least, figure.most) == (
            "pretrain.val_loss", len(values), min(values), max(values),
        )  # fmt: skip
        assert figure.mean == pytest.approx(np.mean(values))
        assert figure.deviation == pytest.approx(np.std(values, ddof=1))
        assert figure.values == dict(enumerate(values))


def test_of_one_seed_twice_the_newest_counts_and_it_is_no_group() -> None:
    twice = [target(1, 0.1, 3.0, at_ms=2), target(1, 0.1, 9.0, at_ms=1)]
    assert seed_groups(twice) == []
    (group,) = seed_groups([*twice, target(2, 0.1, 5.0)])
    assert (group.seeds, group.figures[0].mean, group.params) == ([1, 2], 4.0, {})


def test_the_interval_is_that_of_scipys_t_test() -> None:
    losses = [3.0, 2.5, 2.75, 3.5, 2.25]
    (group,) = seed_groups([target(seed, 0.1, loss) for seed, loss in enumerate(losses)])
    interval = stats.ttest_1samp(losses, 0).confidence_interval(0.95)
    assert (group.figures[0].ci_low, group.figures[0].ci_high) == pytest.approx((interval.low, interval.high))


def test_the_interval_of_equal_values_is_a_point() -> None:
    (group,) = seed_groups([target(seed, 0.1, 3.0) for seed in range(3)])
    assert (group.figures[0].deviation, group.figures[0].ci_low, group.figures[0].ci_high) == (0, 3, 3)


def test_a_metric_that_only_one_run_has_has_no_deviation() -> None:
    (group,) = seed_groups([target(1, 0.1, 3.0, accuracy=0.5), target(2, 0.1, 5.0)])
    assert [figure.metric for figure in group.figures] == ["pretrain.val_loss"]
