"""Figures over seeds, of states as commits hold them."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2core.track.seeds import over_seeds
from gpt2core.track.state import State
from gpt2core.track.targets import Target


def target(seed: int, lr: float, loss: float, at_ms: int = 0, **more: float) -> Target:
    params = {"seed": seed, "pretrain": {"lr": lr, "steps": 5}}
    return Target("x", State(params, {}, {"pretrain": {"val_loss": loss, **more}}), lambda path: None, "", at_ms)


def test_groups_are_of_equal_params_and_their_figures_numpys() -> None:
    losses = {0.1: [3.0, 2.5, 2.75], 0.2: [1.0, 4.0]}
    runs = [target(seed, lr, loss) for lr, values in losses.items() for seed, loss in enumerate(values)]
    first, second = over_seeds([*reversed(runs), target(9, 0.3, 7.0)])
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


def test_of_one_seed_twice_the_newest_counts_and_it_is_no_group() -> None:
    twice = [target(1, 0.1, 3.0, at_ms=2), target(1, 0.1, 9.0, at_ms=1)]
    assert over_seeds(twice) == []
    (group,) = over_seeds([*twice, target(2, 0.1, 5.0)])
    assert (group.seeds, group.figures[0].mean, group.params) == ([1, 2], 4.0, {})


def test_a_metric_that_only_one_run_has_has_no_deviation() -> None:
    (group,) = over_seeds([target(1, 0.1, 3.0, accuracy=0.5), target(2, 0.1, 5.0)])
    assert [figure.metric for figure in group.figures] == ["pretrain.val_loss"]
