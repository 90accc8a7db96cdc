"""`gpt2core new`: the project that it creates, its errors, and the commands of its README."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2core import stage_code
from gpt2core.errors import UserError
from gpt2core.params import code, load_params
from gpt2core.project.create import create
from tests.conftest import ROOT

BIN = Path(sys.executable).parent
IDENTITY = {
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.invalid",
    "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.invalid",
}  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """The variables of a user who has activated this environment."""
    private = ("DVC_", "GPT2CORE_", "MLFLOW_", "GIT_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    path = f"{BIN}{os.pathsep}{env['PATH']}"
    return env | IDENTITY | {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", **more}


def run(*command: str, cwd: Path, timeout_s: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout_s, check=False
    )


def git(root: Path, *arguments: str) -> str:
    done = run("git", *arguments, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class New:
    """A new project, with what the command printed and how long it took."""

    def __init__(self, parent: Path):
        start_s = time.monotonic()
        done = run(sys.executable, "-m", "gpt2core", "new", "ferry", cwd=parent)
        self.duration_s = time.monotonic() - start_s
        assert done.returncode == 0, done.stderr
        self.root, self.stdout = parent / "ferry", done.stdout

    def yaml(self, name: str) -> Any:
        return yaml.safe_load((self.root / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> New:
    """A project that tests only read."""
    return New(tmp_path_factory.mktemp("new"))


@pytest.fixture
def copy(new: New, tmp_path: Path) -> Path:
    """A project that a test may change."""
    return Path(shutil.copytree(new.root, tmp_path / "copy"))


def readme_commands(root: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


# -- What it creates -------------------------------------------------------------------------------------------------


def test_a_project_is_complete_and_committed(new: New) -> None:
    assert new.duration_s < 60
    assert [path.name for path in new.root.parent.iterdir()] == ["ferry"]  # no temporary folder is left
    assert set(git(new.root, "ls-files").splitlines()) == {
        ".dvc/.gitignore", ".dvc/config", ".dvcignore", ".gitignore", "README.md", "code.yaml", "dvc.yaml",
        "params.yaml", "requirements-torch.txt", "requirements.lock", "data/own/README.md", "data/own/corpus.txt",
        "data/own/instructions.json", "models/none/README.md",
        "data/own/messages.csv", *(f".dvc/plots/{path.name}" for path in (ROOT / ".dvc/plots").iterdir()),
    }  # fmt: skip
    assert git(new.root, "status", "--porcelain") == ""
    assert git(new.root, "rev-list", "--count", "HEAD") == "1"
    assert git(new.root, "log", "-1", "--format=%an") == "t"
    for name in git(new.root, "ls-files").splitlines():
        assert not (new.root / name).is_symlink()
        assert str(ROOT) not in (new.root / name).read_text(encoding="utf-8")


def test_dvc_has_a_private_site_cache_where_the_project_is(new: New) -> None:
    site = Path(run("dvc", "config", "core.site_cache_dir", cwd=new.root).stdout.strip())
    assert site == new.root / ".dvc/tmp/site"
    assert stat.S_IMODE(site.stat().st_mode) == 0o700
    assert run("dvc", "stage", "list", "--name-only", cwd=new.root).stdout.split()[0] == "download-data"


def test_the_command_prints_what_the_readme_says(new: New) -> None:
    commands = readme_commands(new.root)
    assert len(commands) == 3
    assert [line.strip() for line in new.stdout.splitlines()[1:]] == ["cd ferry", *commands]


def test_without_activation_it_prints_how_to_activate(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "gpt2core", "new", "a", cwd=tmp_path, PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert f"  source {BIN / 'activate'}\n" in done.stdout or not (BIN / "activate").exists()


def test_an_empty_folder_in_another_repository_becomes_a_repository_of_its_own(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a/mine").mkdir(parents=True)
    outer = str(tmp_path / ".git")
    done = run(sys.executable, "-m", "gpt2core", "new", "a/mine", cwd=tmp_path, GIT_DIR=outer, GIT_INDEX_FILE="/x")
    assert done.returncode == 0, done.stderr
    assert git(tmp_path / "a/mine", "rev-parse", "--show-toplevel") == str((tmp_path / "a/mine").resolve())
    assert run("git", "log", cwd=tmp_path).returncode  # the outer one still has no commit


def test_without_an_identity_the_files_are_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in IDENTITY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    assert create(tmp_path / "a") is False
    assert "A  README.md" in git(tmp_path / "a", "status", "--porcelain").splitlines()


def test_the_params_name_the_example_data(new: New) -> None:
    params = load_params(new.root / "params.yaml")
    names = (params.data.corpus, params.data.classification, params.data.instructions)
    assert names == ("own/corpus.txt", "own/messages.csv", "own/instructions.json")
    own = new.root / "data/own"
    assert len((own / "corpus.txt").read_text(encoding="utf-8").split("<|endoftext|>")) >= 20
    with (own / "messages.csv").open(newline="", encoding="utf-8") as file:
        assert len({row["label"] for row in csv.DictReader(file)}) == 3
    entries = json.loads((own / "instructions.json").read_text(encoding="utf-8"))
    assert all(set(entry) == {"instruction", "input", "output"} for entry in entries)
    readme = (new.root / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in names)


def test_the_readme_explains_columns_of_other_names_and_where_docs_are(new: New) -> None:
    texts = [(new.root / name).read_text(encoding="utf-8") for name in ("params.yaml", "data/own/README.md")]
    readme = (new.root / "README.md").read_text(encoding="utf-8")
    assert any("docs/" in text for text in texts) and not (new.root / "docs").exists()
    assert "`docs/…`, it means the documentation in gpt2core's repository" in readme
    columns = re.findall(r"classification_\w+_column", texts[0])
    assert columns and all(f"`data.{name}`" in readme for name in columns)


@pytest.mark.parametrize(("torch", "numerics"), [("lock", "portable"), ("lock+cpu", "portable"), ("2.9.0", "native")])
def test_numerics_are_portable_with_the_wheels_of_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, numerics: str
) -> None:
    locks = "".join((ROOT / name).read_text() for name in ("requirements-torch.txt", "requirements.lock"))
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", locks, re.MULTILINE))
    versions = {"numpy": locked["numpy"], "torch": torch.replace("lock", locked["torch"])}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    create(tmp_path / "a")
    assert load_params(tmp_path / "a/params.yaml").numerics == numerics


# -- The pipeline is the repository's --------------------------------------------------------------------------------


def test_the_pipeline_is_the_repository_s(new: New) -> None:
    """All but the code: its files are a param instead, and the stages' modules are in the package."""
    theirs, ours = new.yaml("dvc.yaml"), yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    assert theirs["plots"] == ours["plots"]
    assert theirs["metrics"] == ours["metrics"]
    assert theirs["artifacts"] == ours["artifacts"]
    assert list(theirs["stages"]) == list(ours["stages"])
    for name, stage in ours["stages"].items():
        other = theirs["stages"][name]
        assert other.get("foreach") == stage.get("foreach")
        stage, other = stage.get("do", stage), other.get("do", other)
        module = f"stages.{name.replace('-', '_')}"
        assert other.pop("cmd") == stage.pop("cmd").replace(f" {module}", f" gpt2core.{module}")
        inputs = [dep for dep in stage.pop("deps") if not dep.startswith(("gpt2core/", "stages/"))]
        assert other.pop("deps", []) == inputs
        assert other.pop("params") == [*stage.pop("params", []), {"code.yaml": [name]}]
        assert other == stage


def test_the_stages_of_a_project_are_the_repository_s() -> None:
    spec = importlib.util.find_spec("gpt2core.stages.pretrain")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).samefile(ROOT / "stages/pretrain.py")
    assert {path.stem.replace("_", "-") for path in (ROOT / "stages").glob("[a-z]*.py")} == set(stage_code.stages())


# -- The code --------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package as a wheel installs it: with the stages inside, and no link."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "gpt2core", tmp_path / "site/gpt2core", ignore=ignored)
    assert not (tmp_path / "site/gpt2core/stages").is_symlink()
    monkeypatch.setattr(stage_code, "ROOT", tmp_path / "site")
    _forget()
    yield tmp_path / "site"
    _forget()


def _forget() -> None:
    for cached in (stage_code.stage_files, stage_code._tree):
        cached.cache_clear()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_wheel_has_the_hashes_of_the_clone_until_a_file_of_a_stage_changes(new: New, package: Path) -> None:
    path = new.root / "code.yaml"
    assert code.outdated(path) == []
    for name, stages in {
        "cli/summary.py": [],
        "evaluation/judges/questions.py": ["llm-judge-eval"],
        "stages/tokenize.py": ["tokenize"],
        "training/trainer.py": ["finetune-classify", "finetune-instruct", "pretrain"],
    }.items():
        before = (package / "gpt2core" / name).read_bytes()
        (package / "gpt2core" / name).write_bytes(before + b"\n# One more line.\n")
        _forget()
        assert code.outdated(path) == stages
        (package / "gpt2core" / name).write_bytes(before)


@pytest.mark.slow
def test_a_stage_refuses_other_code_until_params_updates_it(copy: Path) -> None:
    path = copy / "code.yaml"
    good = path.read_text(encoding="utf-8")
    changed = re.sub(r'(?m)^((?:gpt2core|pretrain): ")[^"]+', r"\g<1>0.0", good)
    path.write_text(changed, encoding="utf-8")

    def gpt2core(*arguments: str, module: str = "gpt2core") -> subprocess.CompletedProcess[str]:
        return run(sys.executable, "-m", module, *arguments, cwd=copy, GPT2CORE_TRACKING="off")

    assert gpt2core(module="gpt2core.stages.download_data").returncode == 0  # its own code is recorded
    for refused in (gpt2core(module="gpt2core.stages.pretrain"), gpt2core("params", "--check")):
        assert refused.returncode == 1
        (line,) = refused.stderr.splitlines()
        assert line.startswith("error: code.yaml: ") and "for pretrain; update it: gpt2core params" in line
    assert path.read_text(encoding="utf-8") == changed
    assert "changed the code of pretrain" in gpt2core("params").stdout
    assert path.read_text(encoding="utf-8") == good
    assert gpt2core("params", "--check").returncode == 0


def test_messages_name_the_command_where_there_is_no_makefile(copy: Path) -> None:
    path = copy / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 1234", "#", 1), encoding="utf-8")
    refused = run(sys.executable, "-m", "gpt2core", "params", "--check", cwd=copy)
    assert "`gpt2core params` adds it" in refused.stderr


# -- Errors ----------------------------------------------------------------------------------------------------------


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as raised:
        create(folder)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", [".", "..", "a b", "-a", ".hidden", "a\nb", "é" * 101, "x/..", "a$b"])
def test_a_name_that_is_no_folder_s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the last part must be a folder's name"):
        create(Path(name))
    assert [*tmp_path.iterdir()] == []


def test_a_missing_parent_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "no/such/mine", "no/such: no such folder; create it first")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_exists_is_kept(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "mine"
    if kind == "link":
        (tmp_path / "empty").mkdir()
        mine.symlink_to("empty")
    elif kind == "file":
        mine.write_text("mine")
    else:
        mine.mkdir()
        (mine / ".kept").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    refused(mine, "mine: exists and is not an empty folder; choose another name or remove it")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        refused(tmp_path / "mine", "git: not found.*install git")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(tmp_path / "mine", r"dvc: not found.*pip install 'gpt2core\[pipeline\]'")
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written_is_named() -> None:
    parent = Path("/tmp") / f"gpt2core-test-{os.getpid()}"  # the folders above it can be entered by anyone
    parent.mkdir(mode=0o555)
    user = os.geteuid()
    try:
        if user == 0:  # who can write everywhere
            os.seteuid(65534)
        refused(parent / "mine", "cannot be written; choose another")
    finally:
        os.seteuid(user)
        assert [*parent.iterdir()] == []
        parent.rmdir()


@pytest.mark.parametrize("error", [UserError("dvc init failed: no"), KeyboardInterrupt()])
def test_nothing_is_left_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(work: Path, *command: str, **options: Any) -> None:
        assert (work / "README.md").exists()
        raise error

    monkeypatch.setattr("gpt2core.project.create._run", fail)
    with pytest.raises(type(error)):
        create(tmp_path / "mine")
    assert [*tmp_path.iterdir()] == []


def test_a_command_that_fails_is_named_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEMPLATE_DIR", "relative/none")
    monkeypatch.setenv("GIT_DEFAULT_HASH", "no-such-hash")
    refused(tmp_path / "mine", "git init failed: .*no-such-hash")
    assert [*tmp_path.iterdir()] == []


def test_an_error_is_one_line_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    done = run(sys.executable, "-m", "gpt2core", "new", "mine", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: mine: exists and is not an empty folder; choose another name or remove it\n"


# -- The commands of the README --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_written(tmp_path: Path) -> None:
    new = New(tmp_path)
    outputs = []
    for command in readme_commands(new.root):
        done = run("bash", "-c", command, cwd=new.root, timeout_s=500)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        outputs.append(done.stdout)
    repro, summary, generated = outputs
    assert repro.count("Running stage ") == 8
    assert "test accuracy" in summary and "complaint" in summary
    assert generated.startswith("Day 1. The Heron left")
    for name in ("pretrained", "classifier", "instruct", "openai/tiny"):
        assert (new.root / "models" / name / "model.safetensors").stat().st_size > 1000
    for stage in ("tokenize", "pretrain", "finetune_classify", "finetune_instruct", "llm_judge_eval"):
        assert json.loads((new.root / f"metrics/{stage}.json").read_text(encoding="utf-8"))
    changed = {line.split()[-1] for line in git(new.root, "status", "--porcelain").splitlines()}
    assert changed == {"dvc.lock", "metrics/"}
    again = run("dvc", "repro", cwd=new.root, timeout_s=60)
    assert again.returncode == 0 and "Running stage " not in again.stdout, again.stdout + again.stderr
    doctor = run("gpt2core", "doctor", cwd=new.root)
    assert doctor.returncode == 0 and "warning  dvc" not in doctor.stdout, doctor.stdout
    locked = new.yaml("dvc.lock")["stages"]["pretrain"]["params"]["code.yaml"]
    assert locked == {"pretrain": new.yaml("code.yaml")["pretrain"]}
