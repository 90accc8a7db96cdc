"""Statistics of metrics over seeds: experiments whose params differ in `seed` only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpt2core.evaluation.metrics.intervals import mean_std_ci
from gpt2core.tracking.revisions import Revision


@dataclass(frozen=True)
class Figure:
    """A metric over n seeds.

    deviation: sample standard deviation (n - 1). ci_low, ci_high: 95% interval of the mean (Student's t with n - 1
    degrees of freedom). least, most: minimum and maximum. values: the single values, by seed.
    """

    metric: str
    n: int
    mean: float
    deviation: float
    ci_low: float
    ci_high: float
    least: float
    most: float
    values: dict[int, float]


@dataclass(frozen=True)
class SeedGroup:
    """Runs with the same params and different seeds. params: those that differ between groups."""

    params: dict[str, Any]
    seeds: list[int]
    figures: list[Figure]


def seed_groups(revisions: Iterable[Revision]) -> list[SeedGroup]:
    """Return a group for each set of params that ran with two or more seeds.

    If several revisions have the same params and the same seed, the newest one counts.
    """
    runs: dict[str, dict[int, Revision]] = {}
    params: dict[str, dict[str, Any]] = {}
    for revision in sorted(revisions, key=lambda revision: revision.at_ms):
        others = dict(revision.state.deciding_params)
        seed = others.pop("seed", None)
        key = repr(sorted(others.items()))
        runs.setdefault(key, {})[seed] = revision
        params[key] = others
    several = {key: by_seed for key, by_seed in runs.items() if len(by_seed) > 1}
    names = {name for key in several for name in params[key]}
    varying = [name for name in sorted(names) if len({repr(params[key].get(name)) for key in several}) > 1]
    return [
        SeedGroup(
            {name: params[key].get(name) for name in varying},
            sorted(by_seed),
            _figures({seed: by_seed[seed].state.table for seed in sorted(by_seed)}),
        )
        for key, by_seed in several.items()
    ]


def _figures(tables: Mapping[int, Mapping[str, float]]) -> list[Figure]:
    """Return the statistics of each metric that two or more of the tables, one for each seed, have."""
    figures = []
    for metric in dict.fromkeys(name for table in tables.values() for name in table):
        by_seed = {seed: table[metric] for seed, table in tables.items() if metric in table}
        values = list(by_seed.values())
        if len(values) > 1:
            figures.append(Figure(metric, len(values), *mean_std_ci(values), min(values), max(values), by_seed))
    return figures
