"""Conversion of OpenAI's checkpoint to a model directory, compared with TensorFlow's loader on the same files.

    python -m benchmarks.convert [--size 124M] [--rounds 7] [--checkpoint DIR] [--alone]

Both sides are complete processes and take turns. The checkpoint is generated, in OpenAI's format and size, and the page
cache holds it. TensorFlow's program imports it and reads every variable, but writes nothing. gpt2core verifies every
checksum and writes the model directory. Anonymous memory does not include mapped files.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import machine
from benchmarks.machine import GB, MB, run_measured, spread
from gpt2core.checkpoint.openai import CHECKPOINT_PREFIX
from gpt2core.checkpoint.tf_checkpoint import TFCheckpoint
from gpt2core.config.presets import PRESETS

MARGIN_BYTES = 100 * MB  # beyond imports and the largest tensor
IMPORTS = "import gpt2core.cli.convert, gpt2core.checkpoint.openai"
TENSORFLOW = """
import sys
import tensorflow as tf
reader = tf.train.load_checkpoint(sys.argv[1])
tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
"""
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def main() -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("--size", choices=list(PRESETS), default="124M")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checkpoint", type=Path, help="OpenAI's directory, in place of a generated one")
    parser.add_argument("--alone", action="store_true", help="without TensorFlow, which holds all weights in memory")
    arguments = parser.parse_args()
    print(machine.description())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or machine.random_checkpoint(arguments.size, Path(folder))
        compare(checkpoint, Path(folder) / "model", arguments.rounds, alone=arguments.alone)


def compare(checkpoint: Path, out: Path, rounds: int, *, alone: bool) -> None:
    """Print the table: time and memory of both, the limits, and the share of them."""
    entries = TFCheckpoint(checkpoint / CHECKPOINT_PREFIX).entries.values()
    data_bytes = sum(entry.size_bytes for entry in entries)
    largest_bytes = max(entry.size_bytes for entry in entries)
    commands = {"gpt2core convert": [sys.executable, "-m", "gpt2core", "convert", checkpoint, out]}
    if not alone and importlib.util.find_spec("tensorflow"):
        commands["TensorFlow's loader"] = [sys.executable, "-c", TENSORFLOW, checkpoint]
    imports = run_measured([sys.executable, "-c", f"{IMPORTS}; import time; time.sleep(0.1)"])
    env = os.environ | QUIET
    sides = {name: functools.partial(run_measured, command, env) for name, command in commands.items()}
    runs = machine.in_turn(sides, rounds, warm_up=1)

    print(f"{data_bytes / MB:,.0f} MB of weights, {rounds} rounds: median (least to most)")
    for name, used in runs.items():
        times_s, peaks = [one.time_s for one in used], [one.peak_anonymous_bytes / MB for one in used]
        print(f"  {name:<20} {spread(times_s, '.2f')} s, {spread(peaks, ',.0f')} MB anonymous")
    ours = runs.pop("gpt2core convert")
    time_s = statistics.median(one.time_s for one in ours)
    for name, used in runs.items():
        print(f"{statistics.median(one.time_s for one in used) / time_s:.1f} × as fast as {name}")
    limit_bytes = imports.peak_anonymous_bytes + largest_bytes + MARGIN_BYTES
    peak_bytes = max(one.peak_anonymous_bytes for one in ours)
    verdict = "within" if peak_bytes <= limit_bytes else "BEYOND"
    print(
        f"anonymous memory: {peak_bytes / MB:,.0f} MB, {verdict} the limit of "
        f"imports {imports.peak_anonymous_bytes / MB:,.0f} + largest tensor {largest_bytes / MB:,.0f} + 100 MB"
    )
    bandwidth_gb_s = machine.memory_bandwidth_gb_s()
    moved_gb_s = 2 * data_bytes / GB / time_s  # every byte is read once and written once
    print(
        f"memory: {bandwidth_gb_s:.1f} GB/s read at best; the whole process reads and writes {moved_gb_s:.2f} GB/s, "
        f"{moved_gb_s / bandwidth_gb_s:.0%} of it"
    )


if __name__ == "__main__":
    main()
