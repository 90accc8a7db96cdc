"""The fine-tuned models as MLflow models: what is logged, registered and served, by a real store and real servers."""

from __future__ import annotations

import ast
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import yaml

import gpt2core
from gpt2core import files, prompts
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.config.mlflow import Mlflow
from gpt2core.errors import UserError
from gpt2core.inference.respond import respond
from gpt2core.params import Params, load_params
from gpt2core.tracking import models as track_models
from gpt2core.tracking import track_stage
from gpt2core.tracking.sync import sync
from tests.test_architecture import closure, path_of
from tests.tracking.conftest import LABELS

METRICS = {"test_accuracy": 0.875, "test_accuracy_by_seed": {"1": 0.875}, "judge": "none"}
START_S = 180


def params(register: bool | str = False, log_models: bool = True) -> Params:
    return Params.model_construct(seed=7, mlflow=Mlflow(log_models=log_models, register=register))


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")


def log_both(models_dir: Path, of: Params) -> None:
    for stage, kind in (("finetune-classify", "classifier"), ("finetune-instruct", "instruct")):
        with track_stage(stage, of) as run:
            run.log_metrics({"test_accuracy": 0.5}, step=3)
            run.finish(METRICS)
            run.log_model(kind, models_dir / kind, METRICS)


def all_logged(root: Path) -> list[Any]:
    experiment = client(root).get_experiment_by_name("gpt2core")
    return client(root).search_logged_models([experiment.experiment_id])


def logged(root: Path) -> dict[str, Any]:
    """The models of the store by their names."""
    return {model.name: model for model in all_logged(root)}


def folder_of(model: Any) -> Path:
    return Path(model.artifact_location.removeprefix("file://"))


def test_a_stages_model_is_whole_without_pickle_and_takes_no_room(root: Path, models_dir: Path) -> None:
    log_both(models_dir, params())
    found = logged(root)
    assert found.keys() == {"classifier", "instruct"}
    for kind, model in found.items():
        run = client(root).get_run(model.source_run_id)
        assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
        assert (str(model.status), model.params) == ("READY", run.data.params)
        assert {metric.key: metric.value for metric in model.metrics} == {
            "test_accuracy": 0.875, "test_accuracy_by_seed.1": 0.875,
        }  # fmt: skip
        points = client(root).get_metric_history(run.info.run_id, "test_accuracy")
        assert {(point.step, point.value) for point in points} == {(3, 0.875)}, "no step of its own"
        folder = folder_of(model)
        assert folder.is_relative_to(root / "mlartifacts")
        kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert kinds == {"", ".c", ".py", ".json", ".txt", ".yaml", ".safetensors"}, "nothing pickled, no byte code"
        weights = folder / "artifacts/model/model.safetensors"
        assert weights.samefile(models_dir / kind / "model.safetensors")
        flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
        assert flavor["model_code_path"] == f"{kind}.py" and (folder / flavor["code"] / "gpt2core").is_dir()
    assert client(root).search_registered_models() == []


def test_a_logged_model_keeps_its_weights_when_the_directory_is_made_anew(root: Path, models_dir: Path) -> None:
    own = root / "classifier"
    shutil.copytree(models_dir / "classifier", own)
    with track_stage("finetune-classify", params()) as run:
        run.log_model("classifier", own, METRICS)
    weights = folder_of(logged(root)["classifier"]) / "artifacts/model/model.safetensors"
    before = weights.read_bytes()
    model, tokenizer = gpt2core.load(own)
    with torch.no_grad():
        model.score.weight += 1
    save_model(own, model, tokenizer)
    assert weights.read_bytes() == before != (own / "model.safetensors").read_bytes()


def test_each_logged_model_becomes_a_version_where_the_params_say_so(
    root: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "experiment").mkdir()
    monkeypatch.chdir(root / "experiment")  # as `dvc exp run --temp`
    log_both(models_dir, params(register=True))
    log_both(models_dir, params(register=True))
    log_both(models_dir, params(register="harbour"))
    names = {each.name for each in client(root).search_registered_models()}
    assert names == {f"{prefix}-{kind}" for prefix in ("gpt2core", "harbour") for kind in ("classifier", "instruct")}
    versions = client(root).search_model_versions("name = 'gpt2core-classifier'")
    assert sorted(int(each.version) for each in versions) == [1, 2]
    for each in versions:
        assert each.status == "READY"
        (model,) = [m for m in all_logged(root) if m.source_run_id == each.run_id]
        assert each.source == model.artifact_location and Path(each.source.removeprefix("file://")).is_dir()
        shown = {"name": "gpt2core-classifier", "version": each.version}
        assert json.loads(model.tags["mlflow.modelVersions"]) == [shown]


def test_no_model_is_logged_where_the_params_say_so(root: Path, models_dir: Path) -> None:
    log_both(models_dir, params(register=True, log_models=False))
    assert logged(root) == {} and client(root).search_registered_models() == []


def test_a_full_disk_is_a_warning_and_the_metrics_are_there(
    root: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, copy: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy))

    monkeypatch.setattr(track_models.files, "link_or_copy", full)
    with track_stage("finetune-classify", params()) as run:
        run.finish(METRICS)
        run.log_model("classifier", models_dir / "classifier", METRICS)
    (warning,) = capfd.readouterr().err.splitlines()
    assert "continues without MLflow" in warning and "No space left on device" in warning
    model = logged(root)["classifier"]
    assert str(model.status) == "FAILED"
    assert not any(path.is_file() for path in folder_of(model).parent.rglob("*"))
    assert client(root).get_run(model.source_run_id).data.metrics["test_accuracy"] == 0.875


def test_what_is_served_is_all_that_it_imports() -> None:
    copied = {path for pattern in track_models.CODE for path in track_models.PACKAGE.glob(pattern)}
    served = sorted((track_models.PACKAGE / "serve").glob("*.py"))
    assert {f"{kind}.py" for kind in track_models.EXAMPLES} < {path.name for path in served}
    for path in served:
        assert {path_of(module) for module in closure(path)} <= copied, path


def test_a_name_for_the_registry_is_checked(tmp_path: Path) -> None:
    text = (track_models.PACKAGE.parent / "params.yaml").read_text(encoding="utf-8")
    for value, name in (("false", None), ("true", "gpt2core"), ("team a", "team a")):
        (tmp_path / "params.yaml").write_text(text.replace("register: false", f"register: {value}"))
        assert load_params(tmp_path / "params.yaml").mlflow.registry_name() == name
    for value in ("a/b", "a:b", "''", "7", "null"):
        (tmp_path / "params.yaml").write_text(text.replace("register: false", f"register: {value}"))
        with pytest.raises(UserError, match=r"mlflow\.register: .* must be false, true or a name"):
            load_params(tmp_path / "params.yaml")


@pytest.mark.slow
def test_sync_logs_and_registers_the_models_that_lie_there(root: Path, models_dir: Path) -> None:
    """Of a run that was tracked without its model. DVC says what the folder's hash is."""
    shutil.copytree(models_dir / "classifier", root / "models/classifier")
    for command in (("init", "--no-scm", "--quiet"), ("add", "--quiet", "models/classifier")):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=root, check=True, timeout=120)
    (out,) = yaml.safe_load((root / "models/classifier.dvc").read_text())["outs"]
    metrics = root / "metrics/finetune_classify.json"
    files.write_json(metrics, METRICS)
    outs = [
        {"path": "models/classifier", "md5": out["md5"]},
        {"path": "metrics/finetune_classify.json", "md5": hashlib.md5(metrics.read_bytes()).hexdigest()},
    ]
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"finetune-classify": {"cmd": "x", "outs": outs}}}))

    def write_params(register: bool | str) -> None:
        section = {"log_models": True, "register": register}
        (root / "params.yaml").write_text(yaml.safe_dump({"seed": 7, "mlflow": section}))

    def synced(register: bool | str) -> list[str]:
        write_params(register)
        (shown,) = sync(root)
        return shown.done

    write_params(False)
    with track_stage("finetune-classify", params(log_models=False)) as run:
        run.finish(METRICS)
    weights = root / "models/classifier/model.safetensors"
    right = weights.read_bytes()
    weights.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    assert synced(False) == [], "another model than that of the run"
    weights.write_bytes(right)
    assert synced(False) == ["the model of finetune-classify"]
    assert synced(False) == []
    assert synced(True) == ["gpt2core-classifier in the registry"]
    assert synced("harbour") == ["harbour-classifier in the registry"]
    assert synced("harbour") == synced(True) == []
    (model,) = all_logged(root)
    (run,) = (r for r in client(root).search_runs([model.experiment_id]) if "stage" in r.data.tags)
    assert model.source_run_id == run.info.run_id
    assert (folder_of(model) / "artifacts/model/model.safetensors").read_bytes() == right


# -- Opened and served, far from the project ---------------------------------------------------------------------------

# As in a process that knows nothing of the project: only the model's own copy of the package can be imported.
ELSEWHERE = """
import json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import mlflow, pandas
models = {kind: mlflow.pyfunc.load_model(uri) for kind, uri in zip(("classifier", "instruct"), sys.argv[1:])}
examples = {kind: model.input_example for kind, model in models.items()}
answers = {kind: model.predict(examples[kind]) for kind, model in models.items()}
import gpt2core
print(json.dumps({
    "answers": answers, "package": gpt2core.__file__, "modules": sorted(m for m in sys.modules if m[:8] == "gpt2core"),
    "examples": {kind: table.to_dict("records") for kind, table in examples.items()},
}))
"""


def expected_classes(models_dir: Path, texts: list[str]) -> list[dict[str, Any]]:
    """By one text at a time through the model."""
    model, tokenizer = gpt2core.load(models_dir / "classifier")
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text)])  # [1, T]
        with torch.no_grad():
            p = model(ids, torch.tensor([ids.size(1)])).softmax(-1)[0]  # [classes]
        shares = {label: pytest.approx(value, abs=1e-5) for label, value in zip(LABELS, p.tolist(), strict=True)}
        rows.append({"label": LABELS[int(p.argmax())], "probabilities": shares})
    return rows


def expected_response(models_dir: Path, instruction: str, input_text: str, max_new_tokens: int) -> str:
    model, tokenizer = gpt2core.load(models_dir / "instruct")
    entry = {"instruction": instruction, "input": input_text}
    (response,) = respond(model, tokenizer, [entry], max_new_tokens, form=prompts.phi3)
    return response


def imported(modules: list[str]) -> set[str]:
    """The top-level names of other packages that these modules import when they are imported."""
    found = set()
    for module in modules:
        tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"gpt2core"}


OTHER_CODE = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
import gpt2core.runtime
import mlflow
folder = pathlib.Path(sys.argv[2])
try:
    mlflow.pyfunc.load_model(str(folder))
except mlflow.exceptions.MlflowException as error:
    print(error)
else:
    print("loaded")
"""


@pytest.mark.slow
@pytest.mark.parametrize("change", ["", "# a comment\n"])
def test_a_model_does_not_run_another_versions_code(root: Path, models_dir: Path, tmp_path: Path, change: str) -> None:
    """The process imports a copy of the package, as it is or changed, before it loads a model."""
    log_both(models_dir, params())
    folder = folder_of(logged(root)["classifier"])
    shutil.copytree(track_models.PACKAGE, tmp_path / "other/gpt2core", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "other/gpt2core/model/gpt.py").open("a") as file:
        file.write(change)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "GPT2CORE_", "DVC_"))}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_CODE, str(tmp_path / "other"), str(folder)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    if not change:
        assert said == "loaded"
        return
    hashes = re.findall(r"\b[0-9a-f]{12}\b", said)
    assert len(set(hashes)) == 2
    assert f"has imported gpt2core from {tmp_path / 'other/gpt2core'}" in said


@pytest.mark.slow
def test_a_model_opens_without_the_project(
    root: Path, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log_both(models_dir, params())
    folders = {kind: folder_of(model) for kind, model in logged(root).items()}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "GPT2CORE_", "DVC_"))}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folders["classifier"]), str(folders["instruct"])],
        cwd=tmp_path_factory.mktemp("elsewhere"), env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["package"]).is_relative_to(folders["classifier"] / "code")
    ((text,),) = (row.values() for row in said["examples"]["classifier"])
    assert said["answers"]["classifier"] == expected_classes(models_dir, [text])
    (entry,) = said["examples"]["instruct"]
    expected = expected_response(models_dir, entry["instruction"], entry["input"], track_models.MAX_NEW_TOKENS)
    assert said["answers"]["instruct"] == [{"response": expected}]
    names = {"ruamel": "ruamel.yaml", "pydantic_core": "pydantic"}
    needed = {names.get(name, name) for name in imported(said["modules"])}
    needed.add("tqdm")  # gpt2core.runtime imports it when it first shows a progress bar
    lines = (folders["instruct"] / "requirements.txt").read_text().splitlines()
    assert {line.partition("==")[0] for line in lines} == needed
    project = track_models.PACKAGE.parent
    lock = "".join((project / name).read_text() for name in ("requirements.lock", "requirements-torch.txt"))
    pins = set(re.findall(r"^[\w.-]+==[\w.]+", lock, re.MULTILINE))
    assert {line.replace("ruamel.yaml", "ruamel-yaml") for line in lines} <= pins


class Served:
    """`mlflow models serve` of a registered model."""

    def __init__(self, root: Path, name: str, elsewhere: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "GPT2CORE_", "DVC_"))}
        self.log = (elsewhere / f"{name}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{name}/1", "--env-manager",
             "local", "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2]],
            cwd=elsewhere, env=environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"},
            start_new_session=True, stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def wait(self) -> None:
        end_s = time.monotonic() + START_S
        while True:
            with contextlib.suppress(requests.ConnectionError, requests.Timeout):
                if requests.get(f"{self.address}/ping", timeout=5).ok:
                    return
            self.log.seek(0)
            assert self.process.poll() is None and time.monotonic() < end_s, self.log.read()
            time.sleep(0.2)

    def ask(self, **question: Any) -> requests.Response:
        return requests.post(f"{self.address}/invocations", json=question, timeout=60)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait(30)
        self.log.close()


@pytest.fixture
def served(root: Path, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    log_both(models_dir, params(register=True))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    servers = {kind: Served(root, f"gpt2core-{kind}", elsewhere) for kind in ("classifier", "instruct")}
    try:
        for server in servers.values():
            server.wait()
        yield servers
    finally:
        for server in servers.values():
            server.close()


@pytest.mark.slow
def test_mlflow_serves_both_over_http(served: dict[str, Served], models_dir: Path) -> None:
    ask = served["classifier"].ask
    texts = ["The lamp", "took the lamp to the tower", "lit " * 400, ""]
    answer = ask(dataframe_records=[{"text": text} for text in texts]).json()["predictions"]
    assert answer[:2] == expected_classes(models_dir, texts[:2])
    assert [row["probabilities"].keys() for row in answer] == [set(LABELS)] * 4
    alone = ask(dataframe_split={"columns": ["text"], "data": [["The lamp"]]}).json()["predictions"]
    assert alone == expected_classes(models_dir, texts[:1])
    for wrong, said in (
        ({"dataframe_records": [{"txt": "a"}]}, "missing inputs ['text']"),
        ({"dataframe_records": [{"text": None}]}, "row 0: text must be a text, found None"),
        ({"dataframe_records": [{"text": 7}]}, "text"),
    ):
        refused = ask(**wrong)
        assert refused.status_code == 400 and said in refused.json()["message"]

    ask = served["instruct"].ask
    entries = [{"instruction": "Where is the lamp?", "input": "In the tower."}, {"instruction": "Where is the lamp?"}]
    for max_new_tokens in (None, 8):
        more = {} if max_new_tokens is None else {"params": {"max_new_tokens": max_new_tokens}}
        answer = ask(dataframe_records=entries, **more).json()["predictions"]
        longest = max_new_tokens or track_models.MAX_NEW_TOKENS
        assert answer == [
            {"response": expected_response(models_dir, entry["instruction"], entry.get("input", ""), longest)}
            for entry in entries
        ]
        assert answer[0] != answer[1]
    for wrong, said in (
        ({"dataframe_records": [{"input": "a"}]}, "missing inputs ['instruction']"),
        ({"dataframe_records": [{"instruction": "lamp " * 900}]}, "shorten it"),
        ({"dataframe_records": entries, "params": {"max_new_tokens": 0}}, "max_new_tokens: 0 must be 1 or more"),
    ):
        refused = ask(**wrong)
        assert refused.status_code == 400 and said in refused.json()["message"]
