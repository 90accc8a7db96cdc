"""Figures over seeds: experiments whose params differ in `seed` alone, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpt2core.track.targets import Target


@dataclass(frozen=True)
class Figure:
    """A metric over seeds. deviation: the sample's standard deviation (of n - 1)."""

    metric: str
    n: int
    mean: float
    deviation: float
    least: float
    most: float


@dataclass(frozen=True)
class Group:
    """Runs of the same params with different seeds. params: those that tell the groups from each other."""

    params: dict[str, Any]
    seeds: list[int]
    figures: list[Figure]


def over_seeds(targets: Iterable[Target]) -> list[Group]:
    """A group for each set of params that ran with two seeds or more. Of equal params and seed the newest counts."""
    runs: dict[str, dict[int, Target]] = {}
    params: dict[str, dict[str, Any]] = {}
    for target in sorted(targets, key=lambda target: target.at_ms):
        others = target.state.deciding_params
        seed = others.pop("seed", None)
        key = repr(sorted(others.items()))
        runs.setdefault(key, {})[seed] = target
        params[key] = others
    several = {key: by_seed for key, by_seed in runs.items() if len(by_seed) > 1}
    names = {name for key in several for name in params[key]}
    varying = [name for name in sorted(names) if len({repr(params[key].get(name)) for key in several}) > 1]
    return [
        Group(
            {name: params[key].get(name) for name in varying},
            sorted(by_seed),
            _figures([target.state.table for _, target in sorted(by_seed.items())]),
        )
        for key, by_seed in several.items()
    ]


def _figures(tables: list[dict[str, float]]) -> list[Figure]:
    """Of the metrics that two runs or more have."""
    found = []
    for name in dict.fromkeys(name for table in tables for name in table):
        values = [table[name] for table in tables if name in table]
        if len(values) > 1:
            mean, deviation = statistics.fmean(values), statistics.stdev(values)
            found.append(Figure(name, len(values), mean, deviation, min(values), max(values)))
    return found
