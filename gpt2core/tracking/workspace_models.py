"""The models that lie in models/ now, logged to the runs that made them where these have none, and registered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gpt2core.config.mlflow import Mlflow
from gpt2core.tracking.find_runs import find_runs
from gpt2core.tracking.inputs import folder_md5
from gpt2core.tracking.models import OF_STAGE, log_model, register_model, registered_versions
from gpt2core.tracking.state import State

if TYPE_CHECKING:
    from mlflow import MlflowClient


def add_models(client: MlflowClient, root: Path, state: State) -> list[str]:
    """What was done; nothing, where MLflow has all that `mlflow` of the params wants.

    A model goes to the newest run that finished with the stage's present metrics, if the directory is to the byte the
    one that dvc.lock knows.

    Raises:
        Exception: whatever MLflow, its store or the disk have to say.
    """
    try:
        section = Mlflow.model_validate(state.params.get("mlflow"))
    except ValidationError:  # of an older version
        return []
    stages = [stage for stage in OF_STAGE if stage in state.metrics and section.log_models]
    metrics = {stage.replace("-", "_"): state.metrics[stage] for stage in stages}
    done = []
    for recorded in find_runs(root, stages, metrics):
        kind, prefix = OF_STAGE[recorded.stage], section.registry_name()
        folder = Path("models") / kind
        run = client.get_run(recorded.run_id)
        logged = [client.get_logged_model(each.model_id) for each in (run.outputs.model_outputs if run.outputs else ())]
        ready = [model for model in logged if str(model.status) == "READY"]
        if not ready and folder_md5(root / folder) == _locked_md5(state.stages[recorded.stage], folder):
            log_model(client, run, kind, root / folder, state.metrics[recorded.stage], prefix)
            done.append(f"the model of {recorded.stage}")
        elif (
            ready and prefix and not any(v["name"] == f"{prefix}-{kind}" for m in ready for v in registered_versions(m))
        ):
            register_model(client, ready[-1], f"{prefix}-{kind}", recorded.run_id)
            done.append(f"{prefix}-{kind} in the registry")
    return done


def _locked_md5(stage: dict[str, Any], folder: Path) -> str | None:
    outs = (out for out in stage.get("outs", []) if out["path"] == folder.as_posix())
    return next((str(out.get("md5")) for out in outs), None)
