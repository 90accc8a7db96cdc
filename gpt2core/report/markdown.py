"""The comparison with another Git revision as Markdown, such as a comment on a pull request."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpt2core.errors import UserError
from gpt2core.metric_files import FOLDER, HEADLINE_FOLDER, HEADLINES
from gpt2core.report import mermaid, results
from gpt2core.report.plot_changes import WORKSPACE, Changes, Curve, compare_plots
from gpt2core.tracking.pipeline_run import git
from gpt2core.tracking.revisions import experiments

MAX_BYTES = 65_000  # GitHub rejects a comment of more than 65,536 characters
MAX_VALUE_CHARS = 200
NOTE_BYTES = 1_000  # reserved for the sentences about what is left out
NAMES_BYTES = 4_000  # reserved for the names of plots that are not drawn
VALUES = ("old", "new", "change")
NOTHING = "No metrics, params, or plots changed"
Row = tuple[str, ...]


class Change(NamedTuple):
    """A metric or a param that differs. None: it is missing, or null."""

    path: str
    key: str
    old: Any
    new: Any


class Base(NamedTuple):
    """The revision to compare with: its commit, and the name that it was found by, after some words of ours."""

    commit: str
    name: str
    words: str = ""


@dataclass(frozen=True)
class Comparison:
    """What differs between a revision and the working tree, and DVC's warnings while it was read."""

    base: Base
    metrics: list[Change]
    params: list[Change]
    plots: Changes
    warnings: list[str]


def comparison_markdown(root: Path, base: str | None = None) -> str:
    """Return how metrics, params, and plots in the working tree differ from a revision, in GitHub's Markdown.

    Args:
        root: the folder of the project.
        base: Git revision or DVC experiment; by default the merge base with the default branch, else HEAD.

    Raises:
        UserError: no Git repository, no DVC project, an unknown revision, or DVC failed.
    """
    return render(compare(root, base))


def compare(root: Path, base: str | None = None) -> Comparison:
    """Compare the working tree with a revision, by DVC's own commands. Raises UserError as `comparison_markdown`."""
    if git("rev-parse", "--is-inside-work-tree", cwd=root) != "true":
        raise UserError(f"{root}: is in no Git repository; run in a clone of the project, or: git init")
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root}: is no DVC project (no folder .dvc); run in the project's folder, or: dvc init")
    revision = named_base(root, base) if base is not None else default_base(root)
    warnings: list[str] = []
    metrics = _metric_changes(root, warnings, revision.commit)
    params = _changes(_dvc(root, warnings, "params", "diff", revision.commit))
    with tempfile.TemporaryDirectory() as folder:  # DVC puts the pictures among the plots there
        arguments = ("plots", "diff", revision.commit, WORKSPACE, "--split", "--out", folder)
        plots = compare_plots(_dvc(root, warnings, *arguments).get("data", {}), revision.commit)
    return Comparison(revision, metrics, params, plots, list(dict.fromkeys(warnings)))


def named_base(root: Path, name: str) -> Base:
    """Return a Git revision or, if there is none of this name, the newest experiment. Raises UserError."""
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", cwd=root)
    commit = commit or {ref.name: ref.commit for ref in experiments(root)}.get(name)
    if commit is None:
        raise UserError(
            f"{name}: neither a Git revision nor an experiment; choose one of `git log --oneline`, "
            f"`git branch --all`, or `dvc exp list`; in a shallow clone, first: git fetch --unshallow"
        )
    return Base(commit, name)


def default_base(root: Path) -> Base:
    """Return the merge base with the default branch, or HEAD if there is no such branch. Raises UserError."""
    default = git("symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD", cwd=root)
    for branch in filter(None, (default, "origin/main", "origin/master", "main", "master")):
        if commit := git("merge-base", "HEAD", branch, cwd=root):
            return Base(commit, branch, words="merge base with ")
    if commit := git("rev-parse", "--verify", "--quiet", "HEAD", cwd=root):
        return Base(commit, "HEAD")
    raise UserError(f"{root}: the Git repository has no commit to compare with; make one: git commit")


def _dvc(root: Path, warnings: list[str], *arguments: str) -> dict[str, Any]:
    """Return the JSON of a command of DVC, and collect its warnings. Raises UserError with DVC's message."""
    command = [sys.executable, "-m", "dvc", *arguments, "--json"]
    completed = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", errors="replace")
    lines = [line for line in completed.stderr.splitlines() if line.startswith(("DVC failed", "WARNING:", "ERROR:"))]
    if completed.returncode:
        reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), "ERROR: no message")
        raise UserError(f"`dvc {' '.join(arguments[:2])}` failed: {reason.removeprefix('ERROR: ')}")
    warnings += lines
    return json.loads(completed.stdout or "{}")


def _metric_changes(root: Path, warnings: list[str], commit: str) -> list[Change]:
    """Return the changes of all results. DVC calls only the headline metrics metrics, under other names."""
    diff = _dvc(root, warnings, "metrics", "diff", commit)
    if whole := [path for name in HEADLINES if (root / (path := f"{FOLDER}/{name}.json")).exists()]:
        diff = {path: keys for path, keys in diff.items() if path not in whole}
        diff |= _dvc(root, warnings, "metrics", "diff", commit, "--targets", *whole)
    return [change for change in _changes(diff) if not Path(change.path).is_relative_to(HEADLINE_FOLDER)]


def _changes(diff: dict[str, Any]) -> list[Change]:
    rows = [Change(path, key, v.get("old"), v.get("new")) for path, keys in diff.items() for key, v in keys.items()]
    return sorted(rows, key=lambda change: (change.path, change.key))


def render(comparison: Comparison) -> str:
    """Return a comparison as Markdown of at most MAX_BYTES bytes. No text in it can notify a person or run."""
    base, plots = comparison.base, comparison.plots
    commit = base.commit[:7]
    where = commit if base.commit.startswith(base.name) else f"{commit} ({base.words}{code(base.name)})"
    headlines, others = _split(comparison.metrics)
    counts = (
        (len(headlines), "headline metric"), (len(others), "other metric"),
        (len(comparison.params), "param"), (len(plots), "plot"),
    )  # fmt: skip
    counted = [f"{n:,} {name}{'s' if n > 1 else ''}" for n, name in counts if n]
    warnings = "".join(f"\nDVC: {code(line)}\n" for line in comparison.warnings[:5])
    if not counted:
        return f"{NOTHING} compared with {where}.\n{warnings}"
    page = f"### Changed results\n\nCompared with {where}: {_and(counted)} changed.\n{warnings}"

    def room() -> int:
        return MAX_BYTES - NOTE_BYTES - _size(page)

    metrics_command, params_command = f"dvc metrics diff {commit}", f"dvc params diff {commit}"
    page += _table("#### Metrics", ("stage", "metric", *VALUES), headlines, room(), metrics_command)
    rows = [(_param(change), code(change.old), code(change.new)) for change in comparison.params]
    page += _table("#### Params", ("param", "old", "new"), rows, room(), params_command)
    table = _table("", ("file", "metric", *VALUES), others, room() - 100, metrics_command)
    page += _folded(f"{len(others):,} other metric{'s' if len(others) > 1 else ''}", table)
    return page + _plots(plots, commit, room())


def _plots(plots: Changes, commit: str, room: int) -> str:
    """Return the section about plots: a chart for each changed curve, and the names of the others."""
    charts, drawn, not_drawn = "", [], list(plots.not_drawn)
    for curve in plots.curves:
        chart = f"\n{code(curve.plot)}: {code(curve.field)}\n\n{mermaid.chart(curve)}"
        if _size(charts + chart) <= room - NAMES_BYTES:
            charts += chart
            drawn.append(curve)
        elif curve.plot not in not_drawn:
            not_drawn.append(curve.plot)
    folded = _legend(drawn, commit) + charts if drawn else ""
    text = _folded(f"{len(drawn):,} changed curve{'s' if len(drawn) > 1 else ''}", folded)
    for title, names in (
        ("Changed plots that are not drawn here", not_drawn), ("New plots", plots.added),
        ("Removed plots", plots.removed),
    ):  # fmt: skip
        if names:
            text += f"\n{title}: {_names(names, (room - _size(text)) // 2)}.\n"
    return f"\n#### Plots\n{text}\nAll plots: `dvc plots diff {commit} workspace --open`\n" if text else ""


def _legend(curves: Sequence[Curve], commit: str) -> str:
    text = f"\nGray: {commit}. Blue: the new curve.\n"
    if any(curve.is_mean for curve in curves):
        text += "The chart of a plot with several curves, such as one per seed, shows their mean.\n"
    if any(curve.has_other_range for curve in curves):
        text += "A curve that ends earlier continues as a horizontal line.\n"
    return text


def _split(metrics: Iterable[Change]) -> tuple[list[Row], list[Row]]:
    """Return the table rows of the headline metrics, in the order of `results.ROWS`, and those of all others."""
    by_name = {(change.path, change.key): change for change in metrics}
    headlines: list[Row] = []
    parent = ""
    for name, key, description, form in results.ROWS:
        if not description.startswith(" "):
            parent = description
        if change := by_name.pop((f"metrics/{name}.json", key), None):
            full = description if description == parent else f"{parent}: {description.strip()}"
            headlines.append((name.replace("_", "-"), full, *_values(change.old, change.new, form)))
    others: list[Row] = [(code(c.path), code(c.key), *_values(c.old, c.new, ".6g")) for c in by_name.values()]
    return headlines, others


def _values(old: Any, new: Any, form: str) -> tuple[str, str, str]:
    """Return the cells of a metric: its old and new value, and the difference.

    >>> _values(0.985, 0.99, ".2%")
    ('98.50%', '99.00%', '+0.50 points')
    >>> _values(2.0, 1.5, ".3f")
    ('2.000', '1.500', '-0.5 (-25.0%)')
    >>> _values(None, 7, ".6g")
    ('–', '7', '')
    """
    if not (_is_number(old) and _is_number(new)):
        return _number(old, form), _number(new, form), ""
    cells = _number(old, form), _number(new, form)
    if cells[0] == cells[1]:  # the difference is in later digits
        cells = _number(old, ".9g"), _number(new, ".9g")
    difference = new - old
    if form.endswith("%"):
        return *cells, f"{100 * difference:+.2f} points"
    ratio = difference / abs(old) if old else 0.0
    relative = f" ({ratio:+.1%})" if abs(ratio) >= 0.001 else ""
    return *cells, f"{difference:+,}{relative}" if isinstance(difference, int) else f"{difference:+.4g}{relative}"


def _number(value: Any, form: str) -> str:
    if not _is_number(value):
        return code(value)
    return f"{value:,}" if isinstance(value, int) else format(value, form)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _param(change: Change) -> str:
    return code(change.key if change.path == "params.yaml" else f"{change.path}: {change.key}")


def code(value: object) -> str:
    """Return a value as inline code that stays in its table cell, in which GitHub sees no mention, link, or HTML.

    >>> code("@user"), code("a|b"), code(None)
    ('`@user`', '<code>a&#124;b</code>', '–')
    """
    if value is None:
        return "–"
    text = _short(str(value))
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if text.strip() and not set(text) & set("`|\\$"):
        return f"`{text}`"
    return "<code>" + "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text or '""') + "</code>"


def _short(text: str) -> str:
    half = MAX_VALUE_CHARS // 2
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:half]} … {text[-half:]}"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], room: int, command: str) -> str:
    """Return a table with the first rows that fit into a number of bytes; '' without rows."""
    lines = [" | ".join(row) for row in rows]
    if not lines:
        return ""
    is_number = "change" in columns  # a table of metrics
    alignment = " | ".join("---:" if is_number and name in VALUES else "---" for name in columns)
    text = f"\n{title}\n\n" if title else "\n"
    text += f"| {' | '.join(columns)} |\n| {alignment} |\n"
    shown = list(_first(lines, room - _size(text), extra=len("|  |\n")))
    text += "".join(f"| {line} |\n" for line in shown)
    return text + _left_out(len(lines) - len(shown), f"see `{command}`")


def _names(names: Sequence[str], room: int) -> str:
    texts = [code(name) for name in names]
    shown = list(_first(texts, room, extra=len(", ")))
    n_more = len(texts) - len(shown)
    return ", ".join([*shown, f"{n_more:,} more"] if n_more else shown)


def _first(texts: Iterable[str], room: int, extra: int) -> Iterator[str]:
    """Yield the first texts that fit into a number of bytes, each with some more."""
    for text in texts:
        room -= _size(text) + extra
        if room < 0:
            return
        yield text


def _left_out(n: int, remedy: str) -> str:
    return f"\n{n:,} more row{'s' if n > 1 else ''}: {remedy}\n" if n else ""


def _folded(summary: str, text: str) -> str:
    return f"\n<details>\n<summary>{summary}</summary>\n{text}\n</details>\n" if text else ""


def _and(parts: Sequence[str]) -> str:
    """Return a list in words.

    >>> _and(["1 param", "2 plots"]), _and(["a", "b", "c"])
    ('1 param and 2 plots', 'a, b, and c')
    """
    if len(parts) < 3:
        return " and ".join(parts)
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
