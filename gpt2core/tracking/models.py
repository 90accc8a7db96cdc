"""Model directories as MLflow models: from code, without pickle, with signature, input example, and requirements.

`mlflow.pyfunc.log_model` copies the weights twice, and takes seconds to examine every installed package. Here the same
layout is written directly to its destination, and on this machine the weights are linked, not copied.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ruamel.yaml import YAML

from gpt2core import files
from gpt2core.tracking.writer import RunWriter

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

PACKAGE = Path(__file__).parents[1]
# The modules and packages that gpt2core/serve imports, directly or not; a test compares.
CODE = (
    "*.py", "checkpoint/*.py", "config/*.py", "inference/*.py", "model/*.py", "numerics/*.py", "serve/*.py",
    "tokenizer/*.py", "model/*.c",
)  # fmt: skip
REQUIREMENTS = (
    "filelock", "mlflow", "pandas", "pydantic", "regex", "ruamel.yaml", "safetensors", "tiktoken", "torch",
    "tqdm",
)  # fmt: skip
VERSIONS_TAG = "mlflow.modelVersions"  # by which MLflow's pages show where a logged model is registered
MAX_NEW_TOKENS = 256  # of a response, unless the request says another number


KIND_OF_STAGE = {"finetune-classify": "classifier", "finetune-instruct": "instruct"}  # in models/, by the kind's name
EXAMPLES = {  # an input row of each kind; its module in gpt2core/serve has the kind's name
    "classifier": {"text": "You have won a prize! Call now to claim it."},
    "instruct": {"instruction": "Rewrite in capitals.", "input": "the lamp"},
}


def _signature(kind: str) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Map

    if kind == "classifier":
        outputs = Schema([ColSpec(DataType.string, "label"), ColSpec(Map(DataType.double), "probabilities")])
        return ModelSignature(Schema([ColSpec(DataType.string, "text")]), outputs)
    inputs = Schema([ColSpec(DataType.string, "instruction"), ColSpec(DataType.string, "input", required=False)])
    params = ParamSchema([ParamSpec("max_new_tokens", DataType.long, MAX_NEW_TOKENS)])
    return ModelSignature(inputs, Schema([ColSpec(DataType.string, "response")]), params)


def log_model(run: RunWriter, kind: str, folder: Path, metrics: Mapping[str, Any], register: str | None) -> LoggedModel:
    """Log a model directory to a run, with the run's params and its results.

    Args:
        run: of the stage.
        kind: the model's name, and its key in `EXAMPLES`.
        folder: the model directory. It may be replaced later, but its files must not be written to.
        metrics: the run's results, shown on the model's page, too.
        register: the model becomes the next version of `<register>-<kind>` in the registry; None: not registered.

    Raises:
        Exception: any error of MLflow, its store, or the disk.
    """
    from mlflow.entities import LoggedModelOutput

    client, experiment_id = run.client, run.run.info.experiment_id
    model = client.create_logged_model(experiment_id, kind, run.run_id, params=run.params, model_type=kind)
    try:
        client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, max(0, run.last_step()))])
        with _destination(client, model) as (target, place):
            _write(target, place, kind, folder, model, run.run_id)
        run.log_model_results(model.model_id, metrics, time.time_ns() // 1_000_000)
        model = client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to raise
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    if register:
        register_model(client, model, f"{register}-{kind}", run.run_id)
    return model


def register_model(client: MlflowClient, model: LoggedModel, name: str, run_id: str) -> None:
    """Make a logged model the next version of a registered model, which is created if it is missing."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # MLflow's own database would look for `models:/ID` in the store of the environment, not in this one.
    is_here = urlsplit(model.artifact_location).scheme == "file"
    source = model.artifact_location if is_here else f"models:/{model.model_id}"
    version = client.create_model_version(name, source, run_id, model_id=model.model_id, await_creation_for=0)
    versions = [*registered_versions(model), {"name": name, "version": version.version}]
    client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(versions)})


def registered_versions(model: LoggedModel) -> list[dict[str, Any]]:
    """Return `name` and `version` of each registered version of a logged model."""
    return json.loads(model.tags.get(VERSIONS_TAG, "[]"))


Place = Callable[[Path, Path], None]  # gives a file a second name


@contextlib.contextmanager
def _destination(client: MlflowClient, model: LoggedModel) -> Iterator[tuple[Path, Place]]:
    """Yield the folder to write the model to, and a function that puts files there without copying them.

    If the artifacts are not on this machine, it is a temporary folder that is uploaded.
    """
    location = urlsplit(model.artifact_location)
    if location.scheme == "file":
        with files.atomic_dir(unquote(location.path)) as target:
            yield target, files.link_or_copy
        return
    with tempfile.TemporaryDirectory() as target:
        yield Path(target), lambda path, name: name.symlink_to(path.absolute())
        client.log_model_artifacts(model.model_id, target)


def _write(target: Path, place: Place, kind: str, folder: Path, logged: LoggedModel, run_id: str) -> None:
    """Write MLflow's layout of a model from code, as `mlflow.pyfunc.save_model` does."""
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model

    module = f"{kind}.py"
    shutil.copyfile(PACKAGE / "serve" / module, target / module)
    for path in (path for pattern in CODE for path in PACKAGE.glob(pattern)):
        copy = target / "code" / PACKAGE.name / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    weights = target / "artifacts" / "model"
    weights.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file():
            place(path, weights / path.name)
    # torch without its build's suffix
    lines = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}\n" for name in REQUIREMENTS]
    (target / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    YAML().dump(environment, target / "python_env.yaml")

    example = {"columns": list(EXAMPLES[kind]), "data": [list(EXAMPLES[kind].values())]}
    files.write_json(target / "input_example.json", example)
    files.write_json(target / "serving_input_example.json", {"dataframe_split": example})
    model = Model(
        artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id, model_uuid=logged.model_id,
        signature=_signature(kind),
        saved_input_example_info={
            "artifact_path": "input_example.json", "serving_input_path": "serving_input_example.json",
            "type": "dataframe", "pandas_orient": "split",
        },
        model_size_bytes=sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
    )  # fmt: skip
    add_to_model(
        model, "mlflow.pyfunc.loaders.code_model", code="code", python_env="python_env.yaml",
        model_code_path=module, artifacts={"model": {"path": "artifacts/model", "uri": os.fspath(folder)}},
    )  # fmt: skip
    model.save(os.fspath(target / "MLmodel"))
