"""Time and memory of the published fine-tunings at full size, on random weights: the table of docs/published.md.

    python -m benchmarks.published MIRROR                     124M and 355M: half an hour on two cores
    python -m benchmarks.published MIRROR --sizes 124M --steps 4

The weights have OpenAI's shapes and random values, which take the same time. Each stage runs with two steps and with
`--steps` more: the difference is the time of a step, and the rest is loading, evaluation, and saving. Responses are cut
to a few tokens, since random weights never end one. Memory is the largest resident set of the process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import growth, machine
from benchmarks.machine import GB
from gpt2core.params import load_params

ASSETS = ("the-verdict", "sms-spam-collection", "instruction-data", "gpt2-bpe")
FEW_STEPS = 2
STAGES = ("finetune_classify", "finetune_instruct")
CHANGES = {"finetune_instruct.max_new_tokens": 8}


class Row(NamedTuple):
    """A stage at full size: seconds per step, seconds of everything else, steps of the whole run, and memory."""

    stage: str
    step_s: float
    rest_s: float
    n_steps: int
    peak_bytes: int

    def line(self) -> str:
        """Return the row of a table in Markdown."""
        minutes = (self.step_s * self.n_steps + self.rest_s) / 60
        return (
            f"| `{self.stage}` | {self.step_s:.2f} s | {self.n_steps} | {self.rest_s:.0f} s | {minutes:.0f} min "
            f"| {self.peak_bytes / GB:.1f} GB |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("mirror", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=("124M", "355M"), default=["124M", "355M"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--steps", type=int, default=8, help="timed steps (default: 8)")
    given = parser.parse_args(arguments)
    print(machine.description())
    print("| stage | a step | steps | everything else | whole run | memory |\n|---|---:|---:|---:|---:|---:|")
    for size in given.sizes:
        for row in measure(size, given.mirror.resolve(), given.stages, given.steps):
            print(f"| {size} {row.line()[2:]}", flush=True)


def measure(size: str, mirror: Path, stages: Sequence[str], n_steps: int) -> Iterator[Row]:
    """Yield the rows of a size; the data is prepared first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = folder / "mirror"
        inputs.mkdir()
        for asset in ASSETS:
            (inputs / asset).symlink_to(mirror / asset)
        machine.random_checkpoint(size, folder, mirror / "gpt2-bpe").rename(inputs / f"openai-{size}")
        growth.write_params(folder, f"gpt2-{size.lower()}")
        for command in (("download_data",), ("fetch_openai_weights", size), ("convert", size)):
            run(folder, *command)
        for stage in stages:
            few = seconds(folder, size, stage, FEW_STEPS)
            many = seconds(folder, size, stage, FEW_STEPS + n_steps)
            step_s = (many["seconds"] - few["seconds"]) / n_steps
            yield Row(stage, step_s, few["seconds"] - FEW_STEPS * step_s, whole_run(folder, stage), many["peak_bytes"])


def seconds(folder: Path, size: str, stage: str, max_steps: int) -> dict[str, Any]:
    """Return the time and memory of a stage with that many steps."""
    changes = {name: value for name, value in CHANGES.items() if name.startswith(stage)}
    growth.write_params(folder, f"gpt2-{size.lower()}", **changes, **{f"{stage}.max_steps": max_steps})
    return run(folder, stage)


def whole_run(folder: Path, stage: str) -> int:
    """Return the steps of all epochs, which are not cut."""
    section = getattr(load_params(folder / "params.yaml"), stage)
    metrics = json.loads((folder / f"metrics/{stage}.json").read_text())
    n_train = metrics.get("train_messages") or metrics["train_entries"]
    return section.epochs * -(-n_train // section.batch_size)


def run(folder: Path, *command: str) -> dict[str, Any]:
    """Run a stage in a folder that has its inputs in `mirror/`."""
    words = ("env", f"GPT2CORE_MIRROR={folder / 'mirror'}", growth.PYTHON, "-m", f"stages.{command[0]}", *command[1:])
    return growth.run(words, folder)


if __name__ == "__main__":
    main()
