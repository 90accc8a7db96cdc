"""Time of the pipeline's training on an idle machine and with one busy process per core.

    python -m benchmarks.busy [--steps 60] [--rounds 3] [--env OMP_WAIT_POLICY=PASSIVE]... [--repro] [--json]

It times the stage `pretrain` of the default profile, as a whole process, with few steps and a small evaluation, in a
temporary copy of the project. The time includes the start of the process, the final evaluation of the validation split,
and the plots; with more --steps they have less weight. A busy process is a loop that does nothing else. Idle and busy
runs alternate, after one run that does not count. The figures are medians. Run it while nothing else runs: "idle" means
idle except for the training.

Each --env adds one setting to compare with the default. Separate the variables of one setting by spaces:
--env "OMP_WAIT_POLICY=ACTIVE GOMP_SPINCOUNT=1000". --repro also times `dvc repro --force` with each setting, idle and
busy, which takes minutes per run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.machine import description, run_measured
from gpt2core import files
from gpt2core.params import read_values

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable
PREPARE = ("stages.download_data", "stages.tokenize")
PRETRAIN = (PYTHON, "-m", "stages.pretrain")
REPRO = (PYTHON, "-m", "dvc", "repro", "--force")
MIN_ROUNDS = 3
POLL_INTERVAL_S = 0.05  # of the measuring process: rarely, so that it takes no time from the program
# The loop ends with its parent, even if the parent was killed. It looks every few milliseconds.
SPIN = "import os\nwhile os.getppid() == {parent}:\n    for _ in range(100_000):\n        pass"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="training steps per run (default: 60)")
    parser.add_argument(
        "--rounds", type=int, default=MIN_ROUNDS, help="idle and busy runs of each setting (default: 3)"
    )
    parser.add_argument("--env", action="append", default=[], type=setting, metavar="NAME=VALUE",
                        help="a setting to compare with the default; repeatable")  # fmt: skip
    parser.add_argument("--repro", action="store_true", help="also time dvc repro --force")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    given = parser.parse_args(arguments)
    if given.rounds < MIN_ROUNDS or given.steps < 1:
        parser.error(f"--rounds must be at least {MIN_ROUNDS}, --steps at least 1")
    settings: list[dict[str, str]] = [{}, *given.env]
    n_cores = len(os.sched_getaffinity(0))
    report: dict[str, Any] = {"machine": description(), "cores": n_cores, "steps": given.steps, "rounds": given.rounds}
    with tempfile.TemporaryDirectory() as folder:
        project, env = Path(folder) / "project", environment(Path(folder))
        copy_project(project)
        write_params(project, given.steps)
        for module in PREPARE:
            run_measured([PYTHON, "-m", module], env, POLL_INTERVAL_S, project)
        run_measured(PRETRAIN, env, POLL_INTERVAL_S, project)  # reads what later runs find in memory
        report["pretrain"] = compare(PRETRAIN, project, env, settings, given.rounds, n_cores)
        if given.repro:
            write_params(project, None)
            report["repro"] = compare(REPRO, project, env, settings, given.rounds, n_cores)
    if given.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{report['machine']}; busy: {n_cores} spinning processes on {n_cores} cores")
    print_rows(f"stage pretrain, {given.steps} steps, median of {given.rounds}", report["pretrain"])
    if given.repro:
        print_rows(f"dvc repro --force, median of {given.rounds}", report["repro"])


def setting(text: str) -> dict[str, str]:
    """Parse the environment variables of one setting.

    >>> setting("OMP_WAIT_POLICY=ACTIVE GOMP_SPINCOUNT=1000")
    {'OMP_WAIT_POLICY': 'ACTIVE', 'GOMP_SPINCOUNT': '1000'}
    """
    pairs = [word.partition("=") for word in text.split()]
    if not pairs or not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE")
    return {name: value for name, _, value in pairs}


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of the measured programs: no tracking, no checkpoints, nothing from your own settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GPT2CORE_", "DVC_", "GIT_"))}
    env.pop("PYTHONPATH", None)
    return env | {
        "GPT2CORE_TRACKING": "off",
        "GPT2CORE_RESUME": "off",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "PATH": f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}",  # for the stages' `python`
    }


def copy_project(project: Path) -> None:
    """Copy the working tree: the files that Git knows or would add. DVC needs a repository around them."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, project / name)  # no links: DVC writes dvc.lock in place
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)


def write_params(project: Path, steps: int | None, profile: str = "embedded") -> None:
    """Write a profile as params.yaml, with this number of steps and one small evaluation (None: as it is)."""
    yaml = YAML()
    params = read_values(ROOT / f"profiles/{profile}.yaml")
    if steps is not None:
        small = {"max_steps": steps, "eval_interval_steps": steps, "eval_batches": 1, "sample_tokens": 1}
        params["pretrain"] |= small | {"warmup_steps": min(params["pretrain"]["warmup_steps"], steps)}
    with files.atomic_path(project / "params.yaml") as path:
        yaml.dump(params, path)


def compare(
    command: Sequence[str], project: Path, env: Mapping[str, str], settings: Sequence[dict[str, str]], rounds: int,
    n_cores: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Time a command with each setting, idle and busy in turn.

    Returns:
        For each setting: its variables, the times in seconds, their medians, and busy / idle.
    """
    times_s: list[dict[str, list[float]]] = [{"idle": [], "busy": []} for _ in settings]
    for _ in range(rounds):
        for variables, measured in zip(settings, times_s, strict=True):
            for load, n_processes in (("idle", 0), ("busy", n_cores)):
                with busy_processes(n_processes):
                    measured[load].append(run_measured(command, {**env, **variables}, POLL_INTERVAL_S, project).time_s)
                print(f"{label(variables)}, {load}: {measured[load][-1]:.1f} s", file=sys.stderr, flush=True)
    rows = []
    for variables, measured in zip(settings, times_s, strict=True):
        idle_s, busy_s = (statistics.median(measured[load]) for load in ("idle", "busy"))
        rows.append({
            "env": variables, "idle_s": measured["idle"], "busy_s": measured["busy"], "idle_median_s": idle_s,
            "busy_median_s": busy_s, "busy_to_idle": busy_s / idle_s,
        })  # fmt: skip
    return rows


@contextlib.contextmanager
def busy_processes(n_processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep processes spinning inside the block."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(n_processes):
            processes.append(subprocess.Popen([PYTHON, "-c", SPIN.format(parent=os.getpid())]))
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def label(variables: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in variables.items()) or "default"


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    width = max(len(label(row["env"])) for row in rows)
    print(title)
    for row in rows:
        print(
            f"  {label(row['env']):<{width}}  idle {row['idle_median_s']:7.1f} s  busy {row['busy_median_s']:7.1f} s  "
            f"busy / idle {row['busy_to_idle']:.2f}"
        )


if __name__ == "__main__":
    main()
