"""All benchmarks of speed, each compared with its peers in the same run: one table, and a record of it.

    python -m benchmarks.all                   on an idle machine: less than an hour on two cores
    python -m benchmarks.all --long            also the two trainings to a loss: 2.5 hours
    python -m benchmarks.all --device cuda     the table of a GPU
    python -m benchmarks.all --only generate-1 repro

The figures are medians of `--rounds`, and of at most three runs of `dvc repro --force`. A row whose peer is not
installed, or that this machine cannot run, says so. The record, with the figures of all rounds, is a file in
benchmarks/records/. The column "last" is the ratio of the last record of the same kind of machine: absolute figures of
two days differ, ratios of one run compare. Peers: pip install -r requirements-peers.lock, and by hand llama-cpp-python
with gguf, and vllm.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import decoders, machine, rows
from benchmarks.machine import ROOT
from benchmarks.rows import Group, Rounds, Row
from gpt2core import files

RECORDS = ROOT / "benchmarks/records"
HEADER = ("work", "ours", "peer", "ratio", "goal", "last")
CHANGED = 0.05  # of a ratio; smaller changes are noise


def main(arguments: Sequence[str] | None = None) -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")
    parser.add_argument("--long", action="store_true", help="also the trainings to a loss")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=rows.ROUNDS)
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="some groups of rows")
    parser.add_argument("--records", type=Path, default=RECORDS, help="the folder of the records")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    os.environ["GPT2CORE_DEVICE"] = given.device if not rows.no_gpu() else "cpu"  # also that of the worker processes
    groups = chosen(given)
    names = [group.name for group in groups]
    if unknown := set(given.only or names) - set(names):
        parser.error(f"--only: {', '.join(sorted(unknown))}: unknown; allowed: {', '.join(names)}")
    record = run(
        [group for group in groups if not given.only or group.name in given.only],
        given.records,
        command_line(sys.argv[1:] if arguments is None else arguments),
    )
    print(json.dumps(record, indent=2) if given.json else table(record))


def chosen(given: Namespace) -> list[Group]:
    """Return the groups of a device."""
    groups = rows.gpu_groups(given.rounds) if given.device == "cuda" else rows.cpu_groups(given.rounds)
    return groups + rows.long_groups() if given.long else groups


def command_line(arguments: Sequence[str]) -> str:
    """Return the command, without the folder of the records."""
    return re.sub(r" --records[ =]\S+", "", " ".join(["python -m benchmarks.all", *arguments]))


def run(groups: Sequence[Group], folder: Path, command: str) -> dict[str, Any]:
    """Measure all groups; write the record after each of them, and return it."""
    now = datetime.now(UTC)
    kind = machine.kind()
    record: dict[str, Any] = {
        "date": f"{now:%Y-%m-%d %H:%M} UTC", "machine": machine.description(), "kind": kind, "cores": os.cpu_count(),
        "torch": torch.__version__, "python": sys.version.split()[0], "command": command,
        "load_average_at_start": round(os.getloadavg()[0], 2), "rows": [], "seconds": {}, "rounds": {},
    }  # fmt: skip
    last = last_ratios(folder, kind)
    path = folder / f"{now:%Y-%m-%d-%H%M}-{slug(kind)}.json"
    for group in groups:
        start_s = time.perf_counter()
        print(f"{group.name} …", file=sys.stderr, flush=True)
        rounds, reason = measured(group)
        record["seconds"][group.name] = round(time.perf_counter() - start_s, 1)
        record["rounds"][group.name] = {side: [rounded(value) for value in values] for side, values in rounds.items()}
        record["rows"] += [line(row, rounds, reason, last) for row in group.rows]
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(path, record)
    return record


def measured(group: Group) -> tuple[Rounds, str]:
    """Return the figures of a group, or none and the reason. One group that fails does not end the others."""
    if group.lacks:
        return {}, group.lacks
    try:
        return group.measure(), ""
    except Exception as error:
        traceback.print_exc()
        return {}, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def line(row: Row, rounds: Rounds, reason: str, last: Mapping[str, float]) -> dict[str, Any]:
    """Return a row of the record."""
    result: dict[str, Any] = {
        "key": row.key, "work": row.work, "ours": row.ours, "peer": row.peer, "unit": row.unit,
        "at_least": row.at_least, "at_most": row.at_most, "not_run": reason, "last_ratio": last.get(row.key),
    }  # fmt: skip
    for side, name in (("ours", row.ours), ("peer", row.peer)):
        if name in rounds:
            result[f"{side}_median"] = rounded(statistics.median(rounds[name]))
        else:
            result["not_run"] = result["not_run"] or decoders.lacks(name) or f"{name} gave no figure"
    if not result["not_run"]:
        result["ratio"] = rounded(row.ratio(rounds))
        result["is_met"] = row.is_met(row.ratio(rounds))
    return result


def last_ratios(folder: Path, kind: str) -> dict[str, float]:
    """Return the newest ratio of each row in the records of a kind of machine."""
    ratios: dict[str, float] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("kind") == kind:
            ratios |= {row["key"]: row["ratio"] for row in record["rows"] if "ratio" in row}
    return ratios


def table(record: Mapping[str, Any]) -> str:
    """Return the record's rows as a table in Markdown."""
    cells = [HEADER, *(cells_of(row) for row in record["rows"])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    lines = [_joined(row, widths) for row in cells]
    lines.insert(1, _joined(["-" * width for width in widths], widths))
    title = f"{record['machine']}, {record['date']}, {sum(record['seconds'].values()) / 60:.0f} minutes"
    return "\n".join([title, "", *lines])


def _joined(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def cells_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row of the record."""
    ours, peer = (
        f"{row[side]}: {row[f'{side}_median']:,.4g} {row['unit']}" if f"{side}_median" in row else row[side]
        for side in ("ours", "peer")
    )
    goals = [f"{words} {value:g}" for words, value in (("≥", row["at_least"]), ("≤", row["at_most"])) if value]
    if row["not_run"]:
        return row["work"], ours, peer, f"not run: {row['not_run']}", *(goals or [""]), ""
    goal = f"{goals[0]}: {'met' if row['is_met'] else 'missed'}" if goals else ""
    return row["work"], ours, peer, f"{row['ratio']:.3g}", goal, last_cell(row)


def last_cell(row: Mapping[str, Any]) -> str:
    """Return the last ratio and, if it changed, whether ours became better or worse."""
    last = row["last_ratio"]
    if last is None:
        return ""
    change = row["ratio"] / last - 1
    if abs(change) < CHANGED:
        return f"{last:.3g}"
    lower_is_better = row["unit"] not in ("tokens/s", "TFLOP/s")
    return f"{last:.3g}: {'worse' if (change > 0) == lower_is_better else 'better'} now"


def slug(text: str) -> str:
    """Return a text as a part of a file name.

    >>> slug("AMD EPYC (AVX512), 2 threads")
    'amd-epyc-avx512-2-threads'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def rounded(value: float) -> float:
    """Return six significant digits."""
    return float(f"{value:.6g}")


if __name__ == "__main__":
    main()
