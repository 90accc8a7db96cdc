"""How time and memory grow with the amount of work: the curves of docs/scaling.md.

    python -m benchmarks.growth MIRROR                      all curves: an hour and 12 GB of disk on two cores
    python -m benchmarks.growth MIRROR --only tokens files  some of them; the others stay in the record

Each point is a process of its own, or several: its time is the wall time of the whole process, with imports, unless
the curve says otherwise; its memory is the largest resident set of a process. Models have random weights and float32.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks import machine
from benchmarks.machine import GB, MB, ROOT
from gpt2core import files
from gpt2core.params.profiles import render_profile

RECORD = ROOT / "benchmarks/records/growth.json"
Command = tuple[str, ...]
PYTHON = sys.executable
MEASURED = "benchmarks.growth_points"  # prints the seconds that count


@dataclass(frozen=True)
class Curve:
    """Points of growing work: `prepare` writes the inputs of `n` into an empty folder and returns the commands."""

    what: str
    x: str
    points: Sequence[int]
    prepare: Callable[[Path, Path, int], Sequence[Command]]  # folder, mirror, n
    seconds: str = "s"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("mirror", type=Path)
    parser.add_argument("--only", nargs="+", choices=CURVES, default=list(CURVES), metavar="CURVE")
    parser.add_argument("--most", type=int, help="leave out points beyond this number")
    parser.add_argument("--record", type=Path, default=RECORD)
    given = parser.parse_args(arguments)
    record = json.loads(given.record.read_text()) if given.record.exists() else {"curves": {}}
    for name in given.only:
        curve = CURVES[name]
        rows = [point(curve, given.mirror.resolve(), n) for n in curve.points if given.most is None or n <= given.most]
        record["curves"][name] = {
            "what": curve.what, "x": curve.x, "seconds": curve.seconds, "machine": machine.description(),
            "date": f"{datetime.now(UTC):%Y-%m-%d}", "points": rows,
        }  # fmt: skip
        files.write_json(given.record, record)
        print(table(record["curves"][name]), flush=True)


def point(curve: Curve, mirror: Path, n: int) -> dict[str, Any]:
    """Measure one point: every command, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row: dict[str, Any] = {"n": n}
        peak_bytes = 0
        for command in curve.prepare(folder, mirror, n):
            used = run(command, folder)
            peak_bytes = max(peak_bytes, used["peak_bytes"])
            label = used["label"]
            row[label] = round(row.get(label, 0.0) + used["seconds"], 4)
        return {**row, "peak_mb": round(peak_bytes / MB)}


def run(command: Command, folder: Path) -> dict[str, Any]:
    """Run a command; return its seconds, or those that it prints, and its peak memory.

    A first word that ends in ":" names the column.

    Raises:
        RuntimeError: it failed; the message ends with its output.
    """
    label, words = (command[0][:-1], command[1:]) if command[0].endswith(":") else ("time", command)
    with (folder / "output.txt").open("w+") as output:
        start_s = time.perf_counter()
        process = subprocess.Popen(words, cwd=folder, env=environment(folder), stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {said[-2000:]}")
    if MEASURED in words:
        seconds = json.loads(said.splitlines()[-1])["seconds"]
    return {"label": label, "seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a point: its own project, without tracking."""
    path = f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "PYTHONPATH": str(ROOT), "PATH": path, "DVC_ROOT": str(folder), "DVC_NO_ANALYTICS": "1",
        "GPT2CORE_TRACKING": "off",
    }  # fmt: skip


def table(curve: dict[str, Any]) -> str:
    """Return a curve as a table in Markdown."""
    rows = curve["points"]
    columns = [name for name in rows[0] if name not in ("n", "peak_mb")]
    titles = [curve["x"], *(curve["seconds"] if name == "time" else f"{name}, s" for name in columns), "memory"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---:|" * len(titles)]
    for row in rows:
        times = [f"{row[name]:.3g}" for name in columns]
        lines.append(f"| {row['n']:,} | {' | '.join(times)} | {row['peak_mb'] * MB / GB:.2f} GB |")
    return "\n".join([f"{curve['what']}; {curve['machine']}, {curve['date']}", "", *lines, ""])


# -- Corpora ---------------------------------------------------------------------------------------------------------


def novels(mirror: Path) -> Iterator[str]:
    """Yield the paragraphs of the novels, again and again."""
    texts = [path.read_text("utf-8-sig") for path in sorted((mirror / "novels").glob("*.txt"))]
    while True:
        for text in texts:
            yield from text.split("\n\n")


def write_params(folder: Path, profile: str = "novels", **changes: Any) -> None:
    """Write params.yaml: a profile with other values, named as `section.key`."""
    path = folder / "params.yaml"
    path.write_text(render_profile(ROOT / f"profiles/{profile}.yaml"))
    yaml = YAML()
    params = yaml.load(path)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        params[section][key] = value
    yaml.dump(params, path)


def one_file(folder: Path, mirror: Path, n_tokens: int) -> list[Command]:
    """Write a text of about that many tokens of GPT-2's tokenizer as data/raw/corpus."""
    write_params(folder, **{"tokenizer.kind": "gpt2"})
    train = folder / "data/raw/corpus/train"
    train.mkdir(parents=True)
    (folder / "data/raw/corpus/gpt2-bpe").symlink_to(mirror / "gpt2-bpe")
    n_bytes = n_tokens * 4.0  # of novels, a token has 4.0 bytes
    part = "".join(f"{text}\n\n" for text in take_bytes(novels(mirror), min(n_bytes, 4e6)))
    with (train / "novels.txt").open("w", encoding="utf-8") as file:
        for number in range(max(1, round(n_bytes / len(part.encode())))):
            file.write(f"Part {number}.\n\n{part}\n<|endoftext|>\n")
    return [(PYTHON, "-m", "stages.tokenize")]


def many_files(folder: Path, mirror: Path, n_files: int) -> list[Command]:
    """Write a folder of small texts as data/own/texts."""
    write_params(folder, **{"data.corpus": "own/texts"})
    texts, own = novels(mirror), folder / "data/own/texts"
    own.mkdir(parents=True)
    for number in range(n_files):
        (own / f"{number:06d}.txt").write_text(f"Text {number}.\n{next(texts)}\n", encoding="utf-8")
    return [("download-data:", PYTHON, "-m", "stages.download_data"), ("tokenize:", PYTHON, "-m", "stages.tokenize")]


def take_bytes(texts: Iterator[str], n_bytes: float) -> Iterator[str]:
    """Yield texts until they have that many bytes."""
    while n_bytes > 0:
        text = next(texts)
        n_bytes -= len(text.encode()) + 2
        yield text


# -- Models ----------------------------------------------------------------------------------------------------------


def measured(function: str) -> Callable[[Path, Path, int], list[Command]]:
    """Return the commands of a curve that a function of `growth_points` measures."""
    return lambda folder, mirror, n: [(PYTHON, "-m", MEASURED, function, str(n))]


# -- Experiments -----------------------------------------------------------------------------------------------------


def experiments(folder: Path, mirror: Path, n: int) -> list[Command]:
    """Clone this project with its outputs, and make experiments as DVC does, which differ in seed and metrics."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for name in ("metrics", "models", "data"):
        shutil.copytree(ROOT / name, clone / name, dirs_exist_ok=True, symlinks=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=clone, check=True, capture_output=True, text=True
    ).stdout.strip()
    subprocess.run(["git", "fast-import", "--quiet"], cwd=clone, check=True, input=b"".join(commits(clone, head, n)))
    command = ("env", "--chdir=clone", f"DVC_ROOT={clone}", "GPT2CORE_TRACKING=on", PYTHON, "-m", "gpt2core")
    columns = {"sync-mlflow": "sync-mlflow", "sync-mlflow, again": "sync-mlflow"}
    columns |= {name: name for name in ("seeds", "doctor", "report")}
    return [(f"{column}:", *command, name) for column, name in columns.items()]


def commits(clone: Path, head: str, n: int) -> Iterator[bytes]:
    """Yield the commits of experiments as a stream for `git fast-import`."""
    lock = (clone / "dvc.lock").read_text()
    metrics = json.loads((clone / "metrics/pretrain.json").read_text())
    params = (clone / "params.yaml").read_text()
    md5 = hashlib.md5((clone / "metrics/pretrain.json").read_bytes(), usedforsecurity=False).hexdigest()
    for seed in range(1, n + 1):
        ref = f"refs/exps/{head[:2]}/{head[2:]}/seed-{seed}"
        yield f"commit {ref}\ncommitter t <t@localhost> {1_790_000_000 + seed} +0000\ndata 0\nfrom {head}\n".encode()
        results = json.dumps(metrics | {"val_loss": metrics["val_loss"] + seed / 1e6})
        new_md5 = hashlib.md5(results.encode(), usedforsecurity=False).hexdigest()
        changed = {
            "params.yaml": params.replace("\nseed: 1234", f"\nseed: {seed}", 1),
            "dvc.lock": lock.replace("seed: 1234", f"seed: {seed}").replace(md5, new_md5),
            "metrics/pretrain.json": results,
        }
        for name, content in changed.items():
            data = content.encode()
            yield f"M 100644 inline {name}\ndata {len(data)}\n".encode() + data + b"\n"


CURVES = {
    "tokens": Curve(
        "`tokenize` on one text, with GPT-2's tokenizer", "tokens", [10**5, 10**6, 10**7, 10**8, 10**9], one_file
    ),
    "files": Curve(
        "`download-data` and `tokenize` on a folder of small texts", "files", [10**2, 10**3, 10**4, 10**5], many_files
    ),
    "size": Curve(
        "One training step with B=4 and T=256, not compiled", "parameters in millions", [1, 3, 10, 30, 124, 355],
        measured("train_size"), "s per step",
    ),
    "batch": Curve(
        "One training step of the 124M with T=256, not compiled", "batch size", [1, 2, 4, 8, 16, 32],
        measured("train_batch"), "s per step",
    ),
    "context": Curve(
        "One training step of the 124M with B=1, not compiled", "context", [64, 128, 256, 512, 1024],
        measured("train_context"), "s per step",
    ),
    "prompts": Curve(
        "Generating 24 new tokens for each prompt of 64 tokens with the 124M", "prompts", [1, 4, 16, 64],
        measured("generate_batch"), "ms per token of all prompts",
    ),
    "cache": Curve(
        "Generating one more token with the 124M, by the number of tokens in the KV cache", "tokens in the cache",
        [64, 256, 512, 1000], measured("generate_context"), "ms per token",
    ),
    "entries": Curve(
        "Responses of 64 new tokens by a model of the default profile's size", "entries of the test set",
        [10, 100, 1000, 10_000], measured("respond_entries"), "s",
    ),
    "experiments": Curve(
        "Commands that read all experiments", "experiments", [10, 100, 500, 2000], experiments
    ),
}  # fmt: skip


if __name__ == "__main__":
    main()
