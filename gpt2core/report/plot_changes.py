"""The plots that differ between two revisions, from the JSON of `dvc plots diff --split`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WORKSPACE = "workspace"
MAX_ABS = 1e15  # a chart's numbers are written without exponents
Rows = list[dict[str, Any]]


class Curve(NamedTuple):
    """A changed curve of a plot, old and new: each a list of curves (one per seed, for example) of sorted (x, y)."""

    plot: str
    field: str
    x_label: str
    y_label: str
    old: list[np.ndarray]
    new: list[np.ndarray]

    @property
    def is_mean(self) -> bool:
        """Return whether one of the sides has several curves."""
        return max(len(self.old), len(self.new)) > 1

    @property
    def has_other_range(self) -> bool:
        """Return whether the curves start or end at different x."""
        return len({(points[0, 0], points[-1, 0]) for points in (*self.old, *self.new)}) > 1


@dataclass
class Changes:
    """The curves that can be drawn, and the names of other plots that changed, are new, or are gone."""

    curves: list[Curve] = field(default_factory=list)
    not_drawn: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of plots."""
        return sum(map(len, ({c.plot for c in self.curves}, self.not_drawn, self.added, self.removed)))


def compare_plots(plots: Mapping[str, Sequence[Mapping[str, Any]]], base: str) -> Changes:
    """Return the plots that differ between a revision and the workspace.

    Args:
        plots: the value of "data" in DVC's JSON: for each plot its templates and data points, or its pictures.
        base: the revision, as DVC was given it.
    """
    changes = Changes()
    for name, parts in plots.items():
        sides = {revision for part in parts for revision in part["revisions"]}
        if WORKSPACE not in sides or len(sides) == 1:
            (changes.added if WORKSPACE in sides else changes.removed).append(name)
        elif parts[0]["type"] == "image":
            if len({Path(part["url"]).read_bytes() for part in parts}) > 1:
                changes.not_drawn.append(name)
        else:
            _compare_points(name, parts[0], base, changes)
    return changes


def _compare_points(name: str, plot: Mapping[str, Any], base: str, changes: Changes) -> None:
    """Add a plot to the changes if the columns that its template draws differ."""
    anchors = plot["anchor_definitions"]
    points = anchors["<DVC_METRIC_DATA>"]
    x, y = (_encoded(plot["content"], axis, points[0]) for axis in "xy")
    columns = dict.fromkeys(_column_names(plot["content"]))
    rows: dict[str, dict[str, Rows]] = defaultdict(lambda: defaultdict(list))  # by field and revision
    for row in points:
        values = {column: row.get(column) for column in columns if column not in ("rev", "field")}
        rows[str(row.get("field", y))][row["rev"]].append(values)
    changed = {field: sides for field, sides in rows.items() if sides[base] != sides[WORKSPACE]}
    groups = [column for column in columns if column not in (x, y, "rev", "field")]
    x_label, y_label = (str(anchors.get(f"<DVC_METRIC_{axis}_LABEL>") or "") for axis in "XY")
    curves = []
    for column, sides in changed.items():
        old, new = (_curves(sides[revision], x, y, groups) for revision in (base, WORKSPACE))
        if old and new:
            curves.append(Curve(name, column, x_label, y_label, old, new))
    changes.curves += curves
    if changed and not curves:
        changes.not_drawn.append(name)


def _curves(rows: Rows, x: str | None, y: str | None, groups: Sequence[str]) -> list[np.ndarray]:
    """Return one sorted array (points, 2) for each value of the columns `groups`; [] if they are no curves."""
    points: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        try:
            point = float(row[x or ""]), float(row[y or ""])
        except (KeyError, TypeError, ValueError):
            return []
        if all(math.isfinite(value) and abs(value) < MAX_ABS for value in point):
            points[tuple(row[column] for column in groups)].append(point)
    arrays = [np.array(sorted(curve, key=lambda point: point[0])) for curve in points.values()]
    return [array for array in arrays if array[0, 0] < array[-1, 0]]


def _encoded(template: Any, axis: str, point: Mapping[str, Any]) -> str | None:
    """Return the column of the data points that a Vega-Lite template draws along an axis, if it draws it as it is."""
    for part in _mappings(template):
        channel = part.get(axis)
        if isinstance(channel, dict) and channel.get("field") in point and not {"bin", "aggregate"} & set(channel):
            return str(channel["field"])
    return None


def _column_names(template: Any) -> Iterator[str]:
    return (str(part["field"]) for part in _mappings(template) if isinstance(part.get("field"), str))


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all mappings in nested lists and mappings, the outer ones first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _mappings(part)
