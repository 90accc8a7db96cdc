"""Write the curves of docs/scaling.md from benchmarks/records/growth.json: the tables, and docs/img/growth.svg.

python -m tools.docs.growth           # after python -m benchmarks.growth MIRROR
python -m tools.docs.growth --check   # only compare
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import click
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from benchmarks import growth
from gpt2core import files
from tools.docs.pictures import picture

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/scaling.md"
BLOCK = re.compile(r"(<!-- growth[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = 2


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if the page is out of date.")
def main(check: bool) -> None:
    """Write the tables and the picture of how time and memory grow."""
    record = json.loads(growth.RECORD.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    new = with_tables(text, record)
    if check and new != text:
        raise click.ClickException("docs/scaling.md: out of date; run: python -m tools.docs.growth")
    if not check:
        files.write_text(PAGE, new)
        with contextlib.chdir(ROOT / "docs"):
            draw(record)
    click.echo("docs/scaling.md: " + ("up to date" if new == text else "updated"))


def with_tables(text: str, record: dict[str, Any]) -> str:
    """Return the page with the present tables between its markers."""
    tables = "\n".join(growth.table(curve) for curve in record["curves"].values())
    return BLOCK.sub(lambda match: f"{match[1]}\n{tables}\n{match[2]}", text)


def draw(record: dict[str, Any]) -> None:
    """Draw the time of each curve over the work, on logarithmic axes; memory as a dotted line, in GB."""
    curves = record["curves"].values()
    n_rows = -(-len(curves) // COLUMNS)
    with picture("growth", (7.2, 2.1 * n_rows)) as figure:
        axes = list(figure.subplots(n_rows, COLUMNS, squeeze=False).flat)
        for axis, curve in zip(axes, curves, strict=False):
            points = curve["points"]
            work = [point["n"] for point in points]
            for name in (key for key in points[0] if key not in ("n", "peak_mb")):
                label = curve["seconds"] if name == "time" else f"{name}, s"
                axis.plot(work, [point[name] for point in points], marker="o", markersize=3, label=label)
            axis.plot(work, [point["peak_mb"] / 1000 for point in points], ":", color="#555555", label="memory, GB")
            axis.set(xscale="log", yscale="log", xlabel=curve["x"])
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.grid(True)
            axis.legend(frameon=False, fontsize=6)
        for axis in axes[len(curves) :]:
            axis.remove()


if __name__ == "__main__":
    main()
