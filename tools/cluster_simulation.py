"""Simulate pretraining on 8 to 1,024 GPUs, with failures: the table of docs/scaling.md.

    python tools/cluster_simulation.py [--size 124M]

A GPU, its network, or its machine fails at random times, each GPU once in `GPU_MTBF_H` hours on average. Then all
processes restart from the last checkpoint and repeat the steps after it. While the first process saves a checkpoint,
the others wait. The simulated training is long, so that the shares of time are accurate.

The interval today is that of gpt2core/training/resume.py. The best one is the shortest time in the simulation. Young's
formula (1974, "A First Order Approximation to the Optimum Checkpoint Interval") is √(2 · save · time between failures).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import click
import numpy as np

from gpt2core.config.presets import PRESETS
from gpt2core.training.resume import MAX_SAVING_SHARE, SAVE_INTERVAL_S
from scripts.scaling import H100, STEP_TOKENS, TRAINING_TOKENS, Plan, Size, T, header, hours, row

# The Llama 3 paper (2024, section 3.3.4) reports 419 unexpected interruptions in 54 days on 16,384 H100s.
GPU_MTBF_H = 16_384 * 54 * 24 / 419
STATE_BYTES = 12  # per parameter: weights, and AdamW's two moments, in float32
DISK_BYTES_S = 1e9  # an assumption: one process writes to a shared disk
RESTART_S = 120.0  # an assumption: torchrun starts again, PyTorch loads and compiles, and the checkpoint is read
GPU_COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
SIMULATED_FAILURES = 4000


@dataclass(frozen=True)
class Cluster:
    """A training that can fail, in seconds of time."""

    mtbf_s: float  # mean time between failures of all GPUs together
    save_s: float
    restart_s: float = RESTART_S

    def lost_share(self, interval_s: float, seed: int = 0, n_failures: int = SIMULATED_FAILURES) -> float:
        """Return the share of the time that saving, restarts, and repeated steps take, if saved every `interval_s`."""
        rng = np.random.default_rng(seed)
        trained_s = elapsed_s = 0.0
        for until_failure_s in rng.exponential(self.mtbf_s, n_failures):
            # A failure while the processes restart starts the restart again.
            running_s = until_failure_s - self.restart_s
            n_saved = max(0, int(running_s // (interval_s + self.save_s)))
            trained_s += n_saved * interval_s  # what came after the last checkpoint is repeated
            elapsed_s += until_failure_s
        return 1 - trained_s / elapsed_s

    @property
    def young_s(self) -> float:
        """Young's interval."""
        return math.sqrt(2 * self.save_s * self.mtbf_s)

    @property
    def best_s(self) -> float:
        """The interval with the smallest loss of time in the simulation, of a grid around Young's."""
        grid = self.young_s * np.geomspace(0.25, 4, 33)
        return float(min(grid, key=self.lost_share))


def interval_today_s(save_s: float) -> float:
    """Return the interval that a training chooses by itself."""
    return max(SAVE_INTERVAL_S, save_s / MAX_SAVING_SHARE)


def table(size: Size) -> list[str]:
    """Return the table in Markdown: a row per number of GPUs."""
    lines = header(
        "GPUs:", "tokens per step:", "tokens/s:", "10B tokens:", "failures per day:",
        "lost, interval today:", "lost, best interval:", "best interval:", "Young's:",
    )  # fmt: skip
    for n in GPU_COUNTS:
        plan = Plan(size, H100, n, "none", max(STEP_TOKENS, n * T))
        cluster = Cluster(GPU_MTBF_H * 3600 / n, STATE_BYTES * size.parameters / DISK_BYTES_S)
        today = cluster.lost_share(interval_today_s(cluster.save_s))
        best_s = cluster.best_s
        lines.append(
            row(
                f"{n:,}", f"{plan.step_tokens:,}", f"{plan.tokens_s:,.0f}", hours(TRAINING_TOKENS / plan.tokens_s),
                f"{24 * n / GPU_MTBF_H:.3f}", f"{today:.2%}", f"{cluster.lost_share(best_s):.2%}",
                hours(best_s), hours(cluster.young_s),
            )
        )  # fmt: skip
    return lines


@click.command()
@click.option("--size", type=click.Choice(list(PRESETS)), default="124M", show_default=True)
def main(size: str) -> None:
    """Print throughput, failures per day, and the time lost, by number of GPUs."""
    state_gb = STATE_BYTES * Size(size).parameters / 1e9
    save_s = state_gb * 1e9 / DISK_BYTES_S
    click.echo(
        f"{size}: a checkpoint has {state_gb:.1f} GB and takes {save_s:.1f} s; saved every "
        f"{interval_today_s(save_s):.0f} s today\n"
    )
    click.echo("\n".join(table(Size(size))))


if __name__ == "__main__":
    main()
