"""The wheel works where the repository is not; what describes the project to others agrees with it."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from gpt2core.params import code
from tests.conftest import ROOT
from tools.install_torch import describe

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = re.compile(r"^([\w.-]+)==([\w.]+)", re.MULTILINE)
LOCK = dict(PINNED.findall((ROOT / "requirements.lock").read_text(encoding="utf-8")))
LOCKS = ("requirements.lock", "requirements-peers.lock", "requirements-docs.lock")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what Git knows, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(folder / "source")], check=True, timeout=300)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.check_output(["git", "ls-files", "gpt2core"], cwd=ROOT, text=True).split()
    assert {name for name in tracked if (ROOT / name).is_file()} <= names
    assert "gpt2core/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"gpt2core", f"gpt2core-{PROJECT['version']}.dist-info"}
    assert not [name for name in names if name.endswith(".pyc")]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


class Installed(NamedTuple):
    """An environment with the wheel, and with the libraries of this environment."""

    bin: Path
    site: Path

    def run(self, *command: str, cwd: Path, timeout_s: float = 240) -> str:
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTHON", "GPT2CORE_", "VIRTUAL_ENV", "DVC_", "GIT_"))
        }
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]], cwd=cwd, capture_output=True, text=True, timeout=timeout_s,
            env=env | {"PATH": f"{self.bin}{os.pathsep}{env['PATH']}", "GPT2CORE_TRACKING": "off"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    python = venv / "bin" / "python"
    site = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    pip = [
        sys.executable,
        "-m",
        "pip",
        f"--python={python}",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(pip, check=True, timeout=120)
    # The libraries of this environment, but by path alone: its own .pth files would bring the checkout in.
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return Installed(venv / "bin", site)


@pytest.mark.slow
def test_the_installed_wheel_works_in_an_empty_folder(installed: Installed, tmp_path: Path) -> None:
    site, empty = installed.site, tmp_path / "empty"
    empty.mkdir()
    run = functools.partial(installed.run, cwd=empty)
    code = "import gpt2core; print(gpt2core.__file__); print(gpt2core.__version__)"
    file, version = run("python", "-c", code).split()
    assert Path(file).is_relative_to(site) and version == PROJECT["version"]
    assert "generate" in run("gpt2core", "--help")
    assert version in run("gpt2core", "--version")
    run("gpt2core", "convert", str(site / "gpt2core" / "assets" / "openai-tiny"), "tiny")
    assert "language model, whole" in run("gpt2core", "verify", "tiny")
    text = run("gpt2core", "generate", "tiny", "--prompt", "Long ago", "--max-new-tokens", "8", "--temperature", "0")
    assert text.startswith("Long ago") and len(text.strip()) > len("Long ago")
    assert {path.name for path in empty.iterdir()} == {"tiny"}


@pytest.mark.slow
def test_the_installed_wheel_starts_a_project_that_trains(installed: Installed, tmp_path: Path) -> None:
    """A training hashes its code, which is elsewhere in a wheel; the hashes are those of the checkout."""
    installed.run("gpt2core", "new", "mine", cwd=tmp_path)
    project = tmp_path / "mine"
    recorded = yaml.safe_load((project / "code.yaml").read_text(encoding="utf-8"))
    assert recorded == yaml.safe_load(code.render())
    params = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(params.replace("max_steps: 150 ", "max_steps: 20 "), encoding="utf-8")
    installed.run("python", "-m", "dvc", "repro", "pretrain", cwd=project)
    (key,) = (project / ".checkpoints").glob("pretrain-*/key.json")
    assert "gpt2core/stages/pretrain.py" in json.loads(key.read_text(encoding="utf-8"))["code"]
    metrics = json.loads((project / "metrics/pretrain.json").read_text(encoding="utf-8"))
    assert metrics["parameters"] > 0 and (project / "models/pretrained/model.safetensors").exists()


def test_the_extras_are_in_the_locks() -> None:
    """Or `make` would not install what pyproject.toml promises."""
    paths = [ROOT / name for name in (*LOCKS, "requirements-torch.txt")]
    names = {re.sub(r"[-_.]+", "-", name).lower() for path in paths for name, _ in PINNED.findall(path.read_text())}
    extras = PROJECT["optional-dependencies"]
    own = (line for lines in extras.values() for line in lines if not line.startswith("gpt2core["))
    wanted = [*PROJECT["dependencies"], *own]
    assert {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in wanted} <= names  # type: ignore[index]


FOR_DEVELOPERS = {"test", "lint", "peers", "docs"}


def test_the_docs_have_the_size_of_each_extra() -> None:
    aliases = {name for name, lines in PROJECT["optional-dependencies"].items() if lines[0].startswith("gpt2core[")}
    text = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| \d+ \| [\d.]+ GB more \|$", text, re.MULTILINE)
    assert sorted(rows) == sorted(PROJECT["optional-dependencies"].keys() - FOR_DEVELOPERS - aliases)


OPTIONAL = {"transformers"}  # for a judge in a directory; its message says how to install it
PIPELINE_ONLY = (
    "dvc", "mlflow", "pandas", "scipy", "sklearn", "pyarrow", "matplotlib", "psutil", "tenacity", "sacrebleu",
    "sqlalchemy", "voluptuous", "openai", "httpx2", "fastapi", "starlette", "uvicorn", "lm_eval", "datasets",
)  # fmt: skip
BASE = (
    f"ABSENT = {PIPELINE_ONLY}"
    + """
import importlib.util
import sys

def importer():
    frame = sys._getframe(2)
    while "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_globals["__name__"]

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT and importer().startswith("gpt2core"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name in ABSENT else find_spec(name, *package)
import torch, gpt2core
from gpt2core.__main__ import main

model, tokenizer = gpt2core.load(sys.argv[1])
ids = torch.tensor([tokenizer.encode("Long ago")])
assert gpt2core.generate(model, ids, 4).shape == (1, ids.size(1) + 4)
model.train().loss(ids[:, :-1], ids[:, 1:]).backward()
sys.argv[1:] = sys.argv[2:]
main()
"""
)


def without_extras(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BASE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    from gpt2core.checkpoint.openai import convert

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    convert(ROOT / "gpt2core/assets/openai-tiny", folder)
    return str(folder)


@pytest.mark.parametrize("command", ["generate TINY --max-new-tokens 3", "verify TINY", "--help"])
def test_loading_generating_and_training_need_no_extra(tiny: str, command: str) -> None:
    done = without_extras(tiny, *command.replace("TINY", tiny).split())
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("report", "dvc and mlflow and matplotlib and pyarrow[pipeline]"),
        ("report --markdown", "dvc[pipeline]"),
        ("ui models", "fastapi and uvicorn[ui]"),
        ("doctor", "dvc and mlflow and psutil[pipeline]"),
        ("seeds", "dvc and mlflow and scipy[pipeline]"),
        ("sync-mlflow", "dvc and mlflow[pipeline]"),
        ("compare TINY", "scipy and sacrebleu[pipeline]"),
        ("evaluate TINY --tasks piqa", "lm_eval[eval]"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(tiny: str, command: str, missing: str) -> None:
    done = without_extras(tiny, *command.replace("TINY", tiny).split())
    assert done.returncode == 1
    modules, _, extra = missing.rstrip("]").partition("[")
    needs = f"`gpt2core {command.split()[0]}` needs {modules}; install: pip install 'gpt2core[{extra}]'"
    assert done.stderr == f"error: {needs}\n"


def test_type_checkers_find_the_editable_install(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", f"--cache-dir={os.devnull}", "--follow-imports=skip"]
    env = {key: value for key, value in os.environ.items() if key not in ("MYPYPATH", "PYTHONPATH")}
    done = subprocess.run(
        [*command, "-c", "import gpt2core"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_import_is_declared() -> None:
    distributions = packages_distributions()
    declared = {
        re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()  # type: ignore[index]
        for lines in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
        for line in lines
    }
    imported: dict[str, Path] = {}
    for path in [*(ROOT / "gpt2core").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported[str(node.module).partition(".")[0]] = path
    for name in imported.keys() - set(sys.stdlib_module_names) - {"gpt2core", "stages"} - OPTIONAL:
        names = {re.sub(r"[-_.]+", "-", each).lower() for each in distributions.get(name, [name])}
        assert names & declared, f"{imported[name]} imports {name}, which pyproject.toml does not declare"


def test_no_large_or_generated_file_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert [path for path in paths if path.suffix in (".whl", ".pyc", ".db")] == []
    assert [path for path in paths if path.stat().st_size > 5_000_000] == []


def test_the_dockerfile_fits_the_project() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    (image,) = (rest for name, rest in steps if name == "FROM")
    assert image == f"python:{PROJECT['requires-python'].removeprefix('>=')}-slim"
    copied = [word for name, rest in steps if name == "COPY" for word in rest.split()[:-1] if not word.startswith("--")]
    assert copied and all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert not set(copied) & set(ignored)
    assert [rest for name, rest in steps if name == "USER"] == ["gpt2core"]
    assert steps[-1] == ["CMD", '["make", "repro"]']
    assert any("--require-hashes --no-deps -r requirements.lock" in rest for name, rest in steps if name == "RUN")
    assert any("tools/install_torch.py" in rest for name, rest in steps if name == "RUN")


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes_and_none_is_torch(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(PINNED.findall(text)) > 40
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)] == []
    assert [entry for entry in entries if re.match(r"(torch|triton|nvidia[\w-]*)==", entry)] == []


def test_no_package_is_locked_in_two_versions() -> None:
    pins = {pin for name in LOCKS for pin in PINNED.findall((ROOT / name).read_text(encoding="utf-8"))}
    names = [re.sub(r"[-_.]+", "-", name).lower() for name, _ in pins]
    assert len(names) == len(set(names))


def package(name: str, url: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": "2.13.0"}, "download_info": {"url": url}}


def test_the_install_of_torch_says_which_build_it_is_and_how_large(tmp_path: Path) -> None:
    (tmp_path / "torch.whl").write_bytes(bytes(3_000_000))
    cpu = [package("torch", (tmp_path / "torch.whl").as_uri())]
    assert describe(cpu, has_nvidia=False) == "torch 2.13.0, without CUDA: 1 packages, 3 MB"
    cuda = [*cpu, package("nvidia-cublas", "http://127.0.0.1:1/a.whl")]
    assert describe(cuda, has_nvidia=True) == "torch 2.13.0, with CUDA: 2 packages, at least 3 MB"
    assert "GPT2CORE_TORCH_INDEX" in describe(cuda, has_nvidia=False)


def test_the_devcontainer_builds_from_the_dockerfile() -> None:
    path = ROOT / ".devcontainer" / "devcontainer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (path.parent / content["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (path.parent / content["build"]["context"]).resolve() == ROOT
    assert f"USER {content['remoteUser']}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_pre_commit_runs_the_tools_of_the_lock() -> None:
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in content["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in content["repos"]} == {"local"}  # nothing is fetched
    assert {hook["language"] for hook in hooks} == {"system"}
    tools = {hook["entry"].split()[0] for hook in hooks}
    assert tools == {"ruff", "mypy"} and tools <= set(LOCK)
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2]
    assert all(f"\t{tool}" in lint for tool in tools)


def test_the_citation_agrees_with_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the schema 1.2.0 requires
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["authors"][0]["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_changelog_knows_the_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    releases = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:]]
    assert all(releases), headings
    numbers = [tuple(map(int, release.groups())) for release in releases if release]
    assert numbers == sorted(set(numbers), reverse=True)
    assert not numbers or ".".join(map(str, numbers[0])) == PROJECT["version"]
    import gpt2core

    assert gpt2core.__version__ == PROJECT["version"]


def test_continuous_integration_runs_every_python_that_the_package_names() -> None:
    prefix = "Programming Language :: Python :: 3."
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith(prefix)}
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"] if "setup-python" in step.get("uses", "")]
    versions = {str(step["with"]["python-version"]) for step in steps} - {"${{ matrix.python }}"}
    assert versions | set(jobs["python"]["strategy"]["matrix"]["python"]) == named
    oldest = min(named, key=lambda version: int(version.partition(".")[2]))
    assert oldest == PROJECT["requires-python"].removeprefix(">=")
