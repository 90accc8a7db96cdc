"""The models in models/: logged to the runs that made them if these have none, and registered."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from gpt2core import config
from gpt2core.tracking.find_runs import find_runs
from gpt2core.tracking.inputs import folder_md5
from gpt2core.tracking.models import KIND_OF_STAGE, log_model, register_model, registered_versions
from gpt2core.tracking.state import State, file_stem
from gpt2core.tracking.writer import Writer


def add_models(writer: Writer, root: Path, state: State) -> list[str]:
    """Log and register what MLflow lacks of the models that `mlflow` of the params asks for. Return what was done.

    A model goes to the newest run that finished with the stage's present metrics, if the directory has the bytes of
    dvc.lock.

    Raises:
        Exception: any error of MLflow, its store, or the disk.
    """
    try:
        section = config.Mlflow.model_validate(state.params.get("mlflow"))
    except ValidationError:  # of an older version
        return []
    prefix = section.registry_name()
    stages = [stage for stage in KIND_OF_STAGE if stage in state.metrics and section.log_models]
    done = []
    for found in find_runs(root, stages, {file_stem(stage): state.metrics[stage] for stage in stages}):
        kind = KIND_OF_STAGE[found.stage]
        folder = Path("models") / kind
        run = writer.get(found.run_id)
        ids = [output.model_id for output in (run.run.outputs.model_outputs if run.run.outputs else ())]
        models = [model for model in map(run.client.get_logged_model, ids) if str(model.status) == "READY"]
        outs = {out["path"]: out.get("md5") for out in state.stages[found.stage].get("outs", [])}
        if not models:
            if folder_md5(root / folder) == outs.get(folder.as_posix()):
                log_model(run, kind, root / folder, state.metrics[found.stage], prefix)
                done.append(f"the model of {found.stage}")
        elif prefix:
            name = f"{prefix}-{kind}"
            if not any(version["name"] == name for model in models for version in registered_versions(model)):
                register_model(run.client, models[-1], name, found.run_id)
                done.append(f"{name} in the registry")
    return done
