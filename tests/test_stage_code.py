"""A stage's code dependencies are exactly what decides its outputs.

The slow tests do not rely on the tool that writes dvc.yaml: they watch real runs of the pipeline with Python's audit
events, and ask DVC which stages a changed file makes outdated.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from gpt2core import stage_code
from gpt2core.params.profiles import render_profile
from gpt2core.stage_code import PACKAGES, is_observer, stage_files
from gpt2core.training.checkpoints import fingerprint
from tools.stage_deps import code_deps, files_in, is_code

ROOT = Path(__file__).parents[1]
SOURCES = ("gpt2core", "stages", "dvc.yaml", "profiles")  # what the pipeline reads


def stage_definitions(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


@pytest.mark.parametrize(("name", "stage"), stage_definitions().items(), ids=stage_definitions())
def test_dvc_yaml_lists_the_code_of_each_stage(name: str, stage: dict[str, Any]) -> None:
    assert [dep for dep in stage["deps"] if is_code(dep)] == code_deps(name), "run make deps"
    assert f"-m stages.{name.replace('-', '_')}" in stage["cmd"]


# -- The closure -----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with one stage."""
    sources = {
        "stages/__init__.py": "",
        "stages/one_stage.py": "from gpt2core import a\nfrom gpt2core.tracking import run",
        "gpt2core/__init__.py": "from gpt2core import unused",
        "gpt2core/unused.py": "",
        "gpt2core/a.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gpt2core.typed\n"
            "else:\n    import gpt2core.untyped\n"
            "def later():\n    from gpt2core.part.lazy import name\nTABLE = 'table.tsv'"
        ),
        "gpt2core/typed.py": "",
        "gpt2core/untyped.py": "",
        "gpt2core/table.tsv": "1",
        "gpt2core/other.tsv": "2",
        "gpt2core/part/__init__.py": "import gpt2core.part.first",
        "gpt2core/part/first.py": "",
        "gpt2core/part/lazy.py": "ASSETS = 'assets'",
        "gpt2core/part/other.py": "",
        "gpt2core/assets/x/y.bin": "",
        "gpt2core/tracking/__init__.py": "",
        "gpt2core/tracking/run.py": "import gpt2core.part.other",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(stage_code, "ROOT", tmp_path)
    caches: list[Any] = [stage_files, stage_code._tree]
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


def test_the_closure_follows_executed_imports_and_names_of_data(project: Path) -> None:
    assert [path.as_posix() for path in stage_files("one-stage@tiny")] == [
        "gpt2core/a.py",
        "gpt2core/assets/x/y.bin",
        "gpt2core/part/__init__.py",
        "gpt2core/part/first.py",
        "gpt2core/part/lazy.py",
        "gpt2core/table.tsv",
        "gpt2core/untyped.py",
        "stages/__init__.py",
        "stages/one_stage.py",
    ]


@pytest.mark.parametrize("line", ["from . import a", "from .part import first", "from gpt2core import load"])
def test_an_import_that_hides_the_module_is_refused(project: Path, line: str) -> None:
    (project / "gpt2core/a.py").write_text(f"import os\n{line}")
    with pytest.raises(ValueError, match="a.py, line 2: name the module"):
        stage_files("one-stage")


TRAINING_SECTIONS = {
    "pretrain": "pretrain",
    "finetune-classify": "finetune_classify",
    "finetune-instruct": "finetune_instruct",
}


@pytest.mark.parametrize(("stage", "section"), TRAINING_SECTIONS.items())
def test_a_training_reaches_the_schema_of_no_other_section(stage: str, section: str) -> None:
    """So a new parameter of the judge or of MLflow changes neither its deps nor the key of its checkpoint."""
    schema = {path.stem for path in stage_files(stage) if path.parent == Path("gpt2core/config")}
    assert section in schema
    others = {"tokenizer", "openai", "judge", "evaluate", "mlflow", *TRAINING_SECTIONS.values()} - {section}
    assert not schema & others


def test_the_key_of_a_checkpoint_survives_a_parameter_of_another_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for top in PACKAGES:
        shutil.copytree(ROOT / top, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(stage_code, "ROOT", tmp_path)

    def key(stage: str) -> Any:
        stage_files.cache_clear()
        stage_code._tree.cache_clear()
        return fingerprint(stage, {"numerics": "portable"}, [])

    before = {stage: key(stage) for stage in TRAINING_SECTIONS}
    for name in ("judge.py", "mlflow.py"):
        path = tmp_path / "gpt2core/config" / name
        path.write_text(path.read_text() + "\n# One more parameter.\n")
    assert {stage: key(stage) for stage in TRAINING_SECTIONS} == before
    path = tmp_path / "gpt2core/config/pretrain.py"
    path.write_text(path.read_text() + "\n# One more parameter.\n")
    assert {stage for stage in TRAINING_SECTIONS if key(stage) != before[stage]} == {"pretrain"}
    stage_files.cache_clear()
    stage_code._tree.cache_clear()


# -- Real runs -------------------------------------------------------------------------------------------------------

# Each process of a stage appends the modules that it executes and the data files that it opens to a file of the stage.
SITE = """
import os, sys, types
root, folder = os.environ["AUDIT_ROOT"] + os.sep, os.environ["AUDIT_FOLDER"]
for argument in sys.orig_argv:
    if argument.startswith("stages."):
        os.environ["AUDIT_STAGE"] = argument.partition(".")[2]

schema, checks = (os.path.join(root, "gpt2core", name, "") for name in ("config", "params"))

def checks_all_params():
    # Whether the check of the whole params.yaml, an observer, imports the module.
    frame = sys._getframe(2)
    while frame and not frame.f_code.co_filename.startswith(checks):
        frame = frame.f_back
    return frame is not None

def audit(event, arguments):
    stage = os.environ.get("AUDIT_STAGE")
    if stage is None:
        return
    path = None
    if event == "exec" and isinstance(arguments[0], types.CodeType):
        path = arguments[0].co_filename
        if path.startswith(schema) and checks_all_params():
            return
    elif event == "open" and isinstance(arguments[0], str) and not arguments[0].endswith((".py", ".pyc")):
        path = os.path.abspath(arguments[0])
    if path and path.startswith((root + "gpt2core", root + "stages")) and "__pycache__" not in path:
        file = os.open(os.path.join(folder, stage), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, (os.path.relpath(path, root) + "\\n").encode())
        os.close(file)

sys.addaudithook(audit)
"""


OF_OBSERVERS = {"gpt2core/deadline.py"}  # where a stage does not import it, tracking alone does


class Pipeline:
    """A clone of this working tree with the profile tiny, run by DVC."""

    def __init__(self, root: Path, audit: Path):
        self.root, self.audit = root, audit

    def repro(self, *arguments: str, check: bool = True, **env: str) -> None:
        self._run("repro", *arguments, check=check, **env)

    def status(self) -> set[str]:
        """The stages that DVC would run, without what follows an @."""
        return {name.partition("@")[0] for name in json.loads(self._run("status", "--json"))}

    def opened(self, stage: str) -> set[str]:
        """The files of the package that the stage's processes executed or opened."""
        return set((self.audit / stage.replace("-", "_")).read_text().splitlines())

    def outputs(self) -> dict[str, str]:
        """The SHA-256 of each output file."""
        lock = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))
        outs = [self.root / out["path"] for stage in lock["stages"].values() for out in stage.get("outs", [])]
        found = sorted(path for out in outs for path in [out, *out.rglob("*")] if path.is_file())
        return {path.relative_to(self.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    def _run(self, *arguments: str, check: bool = True, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=self.root, env=self.environment | env,
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
        return inherited | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.audit.parent / 'site'}{os.pathsep}{self.root}",
            "AUDIT_ROOT": str(self.root),
            "AUDIT_FOLDER": str(self.audit),
            "GPT2CORE_RESUME": "off",  # the key of a checkpoint hashes package data, which is no use of it
            "GPT2CORE_DEVICE": "cpu",
        }


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The profile tiny, built from scratch with tracking."""
    top = tmp_path_factory.mktemp("pipeline")
    root = top / "project"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *SOURCES], cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    shutil.rmtree(root / "gpt2core")
    for name in listed.stdout.splitlines():  # as they are now, committed or not
        if (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name, follow_symlinks=False)
    (root / "params.yaml").write_text(render_profile(root / "profiles/tiny.yaml"))
    (top / "site").mkdir()
    (top / "site/sitecustomize.py").write_text(SITE)
    (top / "audit").mkdir()
    built = Pipeline(root, top / "audit")
    built.repro("--force", GPT2CORE_TRACKING="on")
    return built


def covered(stage: dict[str, Any]) -> set[str]:
    """All files that a stage's code dependencies name."""
    tops = [ROOT / dep for dep in stage["deps"] if is_code(dep)]
    paths = {path for top in tops for path in (files_in(top) if top.is_dir() else {top})}
    return {path.relative_to(ROOT).as_posix() for path in paths}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), stage_definitions().items(), ids=stage_definitions())
def test_all_code_that_a_stage_opens_is_a_dependency(pipeline: Pipeline, name: str, stage: dict[str, Any]) -> None:
    opened = pipeline.opened(name)
    assert f"stages/{name.replace('-', '_')}.py" in opened
    used = {path for path in opened if not is_observer(module_of(path)) and path != "gpt2core/__init__.py"}
    assert used - OF_OBSERVERS <= covered(stage)


@pytest.mark.slow
def test_observers_do_not_change_the_bytes(pipeline: Pipeline) -> None:
    """The pipeline ran with tracking; profiles/tiny.sha256 is of a run without."""
    expected = (ROOT / "profiles/tiny.sha256").read_text(encoding="utf-8").splitlines()
    assert pipeline.outputs() == {path: hash_ for hash_, path in (line.split("  ", 1) for line in expected)}
    tracked = "gpt2core/tracking/mlflow_run.py"
    assert all(tracked in pipeline.opened(name) for name in stage_definitions())


TRAININGS = {"pretrain", "finetune-classify", "finetune-instruct"}
ALL = set(stage_definitions())
# What a change of each file reruns.
RERUN: dict[str, set[str]] = {
    "gpt2core/tracking/plots/scores.py": set(),
    "gpt2core/tracking/mlflow_run.py": set(),
    "gpt2core/tracking/usage.py": set(),
    "gpt2core/report/page.py": set(),
    "gpt2core/report/templates/page.css": set(),
    "gpt2core/doctor/needs.py": set(),
    "gpt2core/cli/summary.py": set(),
    "gpt2core/ui/templates/ui.js": set(),
    "gpt2core/learn/gpt.py": set(),
    "gpt2core/params/checks.py": set(),
    "gpt2core/params/code.py": set(),
    "gpt2core/project/create.py": set(),
    "gpt2core/config/mlflow.py": set(),
    "gpt2core/config/judge.py": {"llm-judge-eval"},
    "gpt2core/config/finetune_classify.py": {"finetune-classify"},
    "gpt2core/config/optimization.py": TRAININGS,
    "gpt2core/__init__.py": set(),
    "gpt2core/checkpoint/verify.py": set(),
    "gpt2core/evaluation/judges/questions.py": {"llm-judge-eval"},
    "gpt2core/evaluation/llm_judge_eval.py": {"llm-judge-eval"},
    "gpt2core/evaluation/metrics/calibration.py": {"finetune-classify"},
    "gpt2core/training/instruct.py": {"finetune-instruct"},
    "gpt2core/training/classify.py": {"finetune-classify"},
    "gpt2core/training/pretrain.py": {"pretrain"},
    "gpt2core/training/trainer.py": TRAININGS,
    "gpt2core/sources/novels.tsv": {"download-data", "fetch-openai-weights"},
    "gpt2core/files.py": ALL,
}


@pytest.mark.slow
def test_a_changed_file_reruns_only_the_stages_that_it_decides(pipeline: Pipeline) -> None:
    assert pipeline.status() == set()
    found = {}
    for name in RERUN:
        path = pipeline.root / name
        before = path.read_bytes()
        path.write_bytes(before + b"\n# One more line.\n")
        found[name] = pipeline.status()
        path.write_bytes(before)
    assert found == RERUN


# -- Dependencies that nothing opens ---------------------------------------------------------------------------------


def use_lora(params: dict[str, Any]) -> None:
    for section in ("finetune_classify", "finetune_instruct"):
        params[section] |= {"trainable": "lora"}
    params["finetune_instruct"]["lora_base_dtype"] = "int8"


def judge_by_a_model(params: dict[str, Any]) -> None:
    params["judge"] |= {"kind": "transformers", "model_dir": "models/instruct", "max_items": 2, "min_coverage": 0}


def judge_by_a_server_that_is_down(params: dict[str, Any]) -> None:
    params["judge"] |= {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "max_retries": 0}


def run_a_benchmark_that_does_not_exist(params: dict[str, Any]) -> None:
    params["judge"]["kind"] = "chrf"
    params["evaluate"]["tasks"] = ["no-such-task"]


@pytest.mark.slow
def test_each_dependency_is_opened_under_some_params(pipeline: Pipeline) -> None:
    """Runs last in this module, since it changes the pipeline's params. A stage may fail after it opened its code."""
    params_file = pipeline.root / "params.yaml"
    yaml = YAML()
    for change in (use_lora, judge_by_a_model, judge_by_a_server_that_is_down, run_a_benchmark_that_does_not_exist):
        params = yaml.load(params_file.read_text(encoding="utf-8"))
        change(params)
        yaml.dump(params, params_file)
        pipeline.repro(check=False, GPT2CORE_TRACKING="off")
    opened = {path for name in ALL for path in pipeline.opened(name)}
    dependencies = {path for stage in stage_definitions().values() for path in covered(stage)}
    assert sorted(dependencies - opened) == []
