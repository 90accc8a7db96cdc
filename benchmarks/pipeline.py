"""Time of what surrounds the training: MLflow in `dvc repro`, a `dvc repro` with nothing to do, the first token.

    python -m benchmarks.pipeline [--rounds 3]

It works in a temporary copy of the project with the default profile. `dvc repro --force` runs without and with tracking
in turn, each time into a new MLflow store, as in a fresh clone. Then `dvc repro` has nothing to do; compared with it, a
process that only imports DVC. The first token is that of `gpt2core generate --stream` with a model of the default
profile's size and random weights: the time from the start of the process to the first byte of its output.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import busy, machine
from benchmarks.busy import POLL_INTERVAL_S, PYTHON, REPRO, ROOT
from benchmarks.machine import run_measured
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.tokenizer.train import train_bpe

UNTRACKED, TRACKED = "dvc repro --force, no tracking", "dvc repro --force, tracking"
NO_OP, IMPORT = "dvc repro, nothing to do", "import of dvc"
FIRST_TOKEN = "first token of gpt2core generate"
NO_OP_REPRO = (PYTHON, "-m", "dvc", "repro")
IMPORT_DVC = (PYTHON, "-c", "import dvc.cli.parser, dvc.repo")  # what `dvc repro` imports before it looks at a stage
STORE = ("mlflow.db", "mlartifacts")  # in the project's root
REPRO_ROUNDS = 3  # each takes minutes
Times = dict[str, list[float]]  # seconds by name and round


def main(arguments: Sequence[str] | None = None) -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=REPRO_ROUNDS)
    given = parser.parse_args(arguments)
    print(machine.description())
    for name, times_s in {**first_token(given.rounds), **repro(given.rounds)}.items():
        print(f"  {name:<34} {machine.spread(times_s, '.2f')} s")


def repro(rounds: int, no_op_rounds: int = 5, profile: str = "embedded") -> Times:
    """Time `dvc repro --force` without and with tracking, `dvc repro` with nothing to do, and the import of DVC."""
    with project_copy(profile) as (project, env):
        run = functools.partial(timed_run, project=project)
        times_s = machine.in_turn(
            {
                UNTRACKED: lambda: run(REPRO, env),
                TRACKED: lambda: new_store(project) or run(REPRO, env | {"GPT2CORE_TRACKING": "on"}),
            },
            rounds,
        )
        no_op = {NO_OP: lambda: run(NO_OP_REPRO, env), IMPORT: lambda: run(IMPORT_DVC, env)}
        return times_s | machine.in_turn(no_op, no_op_rounds, warm_up=1)


@contextlib.contextmanager
def project_copy(profile: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a committed copy of the project with a profile as its params, and the environment of its programs."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        busy.copy_project(project)
        busy.write_params(project, None, profile)
        env = {name: value for name, value in busy.environment(Path(folder)).items() if not name.startswith("MLFLOW_")}
        identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
        for arguments in (["add", "--all"], [*identity, "commit", "--quiet", "--message", "Copy"]):
            subprocess.run(["git", *arguments], cwd=project, check=True)
        yield project, env


def timed_run(command: Sequence[str], env: Mapping[str, str], project: Path) -> float:
    """Return the seconds of a program, from its start to its end."""
    return run_measured(command, env, POLL_INTERVAL_S, project).time_s


def new_store(project: Path) -> None:
    """Remove MLflow's store."""
    for name in STORE:
        path = project / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def first_token(rounds: int) -> Times:
    """Time the first token of a model of the default profile's size, by whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_bpe(["The keeper of the harbor took the lamp to the tower. " * 20], 280)
        save_model(folder, machine.random_model("tiny", tokenizer.vocab_size), tokenizer)
        command = [PYTHON, "-m", "gpt2core", "generate", folder, "--prompt", "The", "--json", "--max-new-tokens", "1"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # fails here, with a message, if at all
        stream = [PYTHON, "-m", "gpt2core", "generate", folder, "--stream", "--max-new-tokens", "8"]
        return machine.in_turn({FIRST_TOKEN: lambda: first_byte_s(stream)}, rounds, warm_up=1)


def first_byte_s(command: Sequence[str]) -> float:
    """Return the seconds from the start of a program to the first byte of its output.

    Raises:
        RuntimeError: it ended without output, or with an error.
    """
    start_s = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout
        first = process.stdout.read(1)
        time_s = time.perf_counter() - start_s
        process.communicate()
    if process.returncode or not first:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return time_s


if __name__ == "__main__":
    main()
