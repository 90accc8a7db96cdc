"""A search for hyperparameters with Optuna. Each trial is a DVC experiment; in MLflow it is nested in the study's run.

    python examples/optuna/study.py --trials 10       # run it again to continue the study

`suggest` has what is searched. A figure of metrics/ is minimized, by default the loss of pretraining.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna

from gpt2core.tracking import revisions, store
from gpt2core.tracking.writer import PARENT_TAG, PIPELINE_TAG

ROOT = Path.cwd()


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Return the params of a trial, by their names in params.yaml."""
    return {
        "pretrain.lr": trial.suggest_float("pretrain.lr", 1e-3, 1e-2, log=True),
        "pretrain.weight_decay": trial.suggest_float("pretrain.weight_decay", 0.0, 0.2, step=0.05),
    }


def assignment(key: str, value: Any) -> str:
    """As `--set-param` takes it."""
    return f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"


def run_experiment(name: str, params: dict[str, Any], stage: str) -> revisions.Revision:
    """Run the pipeline up to `stage` outside the workspace; return the results of the experiment."""
    changes = [word for key, value in params.items() for word in ("--set-param", assignment(key, value))]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, *changes, stage]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    return revisions.named(ROOT, name)


class StudyRun:
    """The study's own run in MLflow, found by its name or created; the experiments' runs are put under it."""

    def __init__(self, name: str) -> None:
        self.client, self.experiment_id = store.open_store(ROOT)
        known = self._search(f"tags.study = '{name}'")
        run = known[0] if known else self.client.create_run(self.experiment_id, run_name=name, tags={"study": name})
        self.run_id = run.info.run_id
        self.client.update_run(self.run_id, status="RUNNING")

    def nest(self, target: revisions.Revision) -> None:
        for run in self._search(f"tags.`{PIPELINE_TAG}` = '{target.key}'"):
            self.client.set_tag(run.info.run_id, PARENT_TAG, self.run_id)

    def log(self, number: int, best: float) -> None:
        self.client.log_metric(self.run_id, "best", best, step=number)

    def finish(self, best: optuna.trial.FrozenTrial | None) -> None:
        for key, value in (best.params if best else {}).items():
            self.client.set_tag(self.run_id, f"best.{key}", value)
        self.client.set_terminated(self.run_id)

    def _search(self, condition: str) -> list[Any]:
        return self.client.search_runs([self.experiment_id], condition)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="study", help="of the study; its trials are the experiments NAME-0, …")
    parser.add_argument("--trials", type=int, default=10, help="how many to run now (default: 10)")
    parser.add_argument("--metric", default="pretrain.val_loss", help="STAGE.METRIC (default: pretrain.val_loss)")
    parser.add_argument("--maximize", action="store_true", help="the metric is better when it is higher")
    arguments = parser.parse_args()
    stage, _, _ = arguments.metric.partition(".")
    study = optuna.create_study(
        study_name=arguments.name, storage=f"sqlite:///{ROOT / 'optuna.db'}", load_if_exists=True,
        direction="maximize" if arguments.maximize else "minimize",
    )  # fmt: skip
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # repeatable, and other draws when it goes on
    tracked = StudyRun(arguments.name) if store.is_enabled() else None

    def objective(trial: optuna.Trial) -> float:
        target = run_experiment(f"{arguments.name}-{trial.number}", suggest(trial), stage)
        if tracked:
            tracked.nest(target)
        return target.state.table[arguments.metric]

    def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if tracked and trial.state == optuna.trial.TrialState.COMPLETE:
            tracked.log(trial.number, study.best_value)

    best = None
    try:
        study.optimize(objective, n_trials=arguments.trials, catch=(subprocess.CalledProcessError,), callbacks=[after])
    finally:
        if study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
            best = study.best_trial
        if tracked:
            tracked.finish(best)
    if best is None:
        sys.exit("error: no trial came to its end; DVC says above why")
    changes = " ".join(f"-S {assignment(key, value)}" for key, value in best.params.items())
    print(f"{arguments.metric} {best.value:.6g} in {arguments.name}-{best.number}: {changes}")
    print(f"take it over: dvc exp apply {arguments.name}-{best.number}")


if __name__ == "__main__":
    main()
