"""Measure the headline metrics over whole-pipeline seeds: `python scripts/seeds.py` (`make seeds`).

Each seed is a DVC experiment that changes only the top-level `seed`, which decides the embedded data, the splits, the
weights of the base model, and the order of the data. The experiments run one after the other in temporary copies, so
neither the workspace nor your queue of experiments changes. Run the command again after an interruption: finished
seeds are not run again, and an interrupted training continues from its checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from gpt2core import config, files
from gpt2core.cli.experiments import print_groups, with_headlines
from gpt2core.errors import UserError
from gpt2core.report import results
from gpt2core.runtime import stage_main
from gpt2core.signals import Terminated
from gpt2core.tracking import revisions
from gpt2core.tracking.commit_states import CommitStates
from gpt2core.tracking.pipeline_run import git
from gpt2core.tracking.revisions import Revision
from gpt2core.tracking.seeds import SeedGroup, seed_groups

RECORD = Path("benchmarks/records/seeds.json")
# Results depend on these. DVC copies uncommitted changes into an experiment, but the record describes a commit.
RESULTS_DEPEND_ON = (
    "params.yaml", "dvc.yaml", "requirements.lock", "requirements-torch.txt", "stages", "gpt2core", "data/own",
)  # fmt: skip


@click.command()
@click.option(
    "--seeds", "n_seeds", type=click.IntRange(2), default=5, show_default=True, help="Number of seeds: 1 to N."
)
@click.option("--out", type=click.Path(path_type=Path), default=RECORD, show_default=True, help="Record to write.")
def main(n_seeds: int, out: Path) -> None:
    """Run the pipeline with seeds 1 to N, write a record of the headline metrics, and print it as a table."""
    root = config.project_root()
    head = require_committed(root)
    runs = [find(root, head, seed) or run(root, head, seed) for seed in range(1, n_seeds + 1)]
    (group,) = map(with_headlines, seed_groups(runs))
    files.write_json(out, record(group))
    print_groups([group])
    click.echo(f"{out}: written")


def require_committed(root: Path) -> str:
    """Return the commit that HEAD names.

    Raises:
        UserError: there is no commit, or files that results depend on have uncommitted changes.
    """
    head = git("rev-parse", "--verify", "--quiet", "HEAD", cwd=root)
    changed = git("status", "--porcelain", "--", *RESULTS_DEPEND_ON, cwd=root, strip=False)
    if head is None or changed is None:
        raise UserError(f"{root}: not a Git repository with a commit; DVC experiments need one")
    if changed:
        names = ", ".join(line[3:] for line in changed.splitlines())
        raise UserError(f"commit or stash these changes first, because the record describes a commit: {names}")
    return head


def find(root: Path, head: str, seed: int) -> Revision | None:
    """Return the finished experiment of a seed, or None.

    The experiment may be of an earlier commit, if nothing that results depend on has changed since.

    Raises:
        UserError: HEAD has an experiment with this name and other params, or without results of all stages.
    """
    name = experiment_name(seed)
    params = config.read_yaml(root / "params.yaml") | {"seed": seed}
    for ref in reversed(revisions.experiments(root)):
        if ref.name != name or git("diff", "--name-only", ref.baseline, head, "--", *RESULTS_DEPEND_ON, cwd=root) != "":
            continue
        target = revisions.experiment(root, CommitStates(root), ref)
        if target is not None and target.state.params == params:
            with_results = {stage.replace("-", "_") for stage in target.state.metrics}
            if with_results.issuperset(results.NAMES):
                return target
        if ref.baseline == head:
            raise UserError(f"experiment {name}: lacks results of seed={seed}; remove it: dvc exp remove {name}")
    return None


def run(root: Path, head: str, seed: int) -> Revision:
    """Run the whole pipeline with a seed, in a temporary copy.

    Raises:
        UserError: the experiment failed. DVC has written why.
    """
    name = experiment_name(seed)
    click.echo(f"seed {seed}: dvc exp run --temp --name {name} --set-param seed={seed}", err=True)
    code = run_dvc(root, "exp", "run", "--temp", "--name", name, "--set-param", f"seed={seed}")
    target = None if code else find(root, head, seed)
    if target is None:
        raise UserError(
            f"seed {seed}: the experiment {name} failed with exit code {code}; fix what DVC reports above and run this "
            "command again (finished seeds are kept)"
        )
    return target


def run_dvc(root: Path, *arguments: str) -> int:
    """Run DVC with its output on standard error, and return its exit code.

    After Ctrl-C, which DVC and the stage also receive, wait until they have ended. Pass SIGTERM on to them.
    """
    import psutil

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # for the stages' `python`
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, env=os.environ | {"PATH": path}, stdout=sys.stderr
    )
    try:
        return process.wait()
    except KeyboardInterrupt as error:
        if isinstance(error, Terminated):
            for child in reversed(psutil.Process().children(recursive=True)):
                child.terminate()
        process.wait()
        raise


def experiment_name(seed: int) -> str:
    return f"seeds-{seed}"


def record(group: SeedGroup) -> dict[str, Any]:
    """Return the content of the record: nothing that depends on the machine, the time, or experiment names."""
    return {
        "seeds": group.seeds,
        "confidence": 0.95,
        "metrics": {
            figure.metric: {
                "n": figure.n,
                "mean": round(figure.mean, 6),
                "sd": round(figure.deviation, 6),
                "ci_low": round(figure.ci_low, 6),
                "ci_high": round(figure.ci_high, 6),
                "values": figure.values,
            }
            for figure in group.figures
        },
    }


if __name__ == "__main__":
    stage_main(main)
