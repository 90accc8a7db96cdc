"""Clean clones of this working tree, and bounded commands in them."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from gpt2core import files, numerics

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# What the surroundings of the tests must not decide.
PRIVATE = ("DVC_", "GPT2CORE_", "MLFLOW_", "OPENAI_", "GIT_")


@dataclass(frozen=True)
class Result:
    """How a command ended: exit code, what it wrote, and how long it took."""

    returncode: int
    stdout: str
    stderr: str
    duration_s: float

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def stages_run(self) -> list[str]:
        """The stages that DVC says it ran, in order."""
        prefix = "Running stage '"
        lines = (line[len(prefix) :] for line in self.stdout.splitlines() if line.startswith(prefix))
        return [line.partition("'")[0] for line in lines]


@dataclass
class Project:
    """A clone with its own Git, DVC cache and MLflow store."""

    root: Path
    env: dict[str, str]

    def run(self, *command: str | Path, timeout_s: float = 300, check: bool = True, **env: str) -> Result:
        """Run a command in the clone. It and all it started are killed after `timeout_s`."""
        start_s = time.monotonic()
        # Files, not pipes: a worker of DVC's queue may hold the other end of a pipe until it ends.
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as out,
            tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        ):
            process = subprocess.Popen(
                [str(word) for word in command], cwd=self.root, env=self.env | env, stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(timeout=timeout_s)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=30)
                raise
            stdout, stderr = (file.seek(0) or file.read() for file in (out, err))
        result = Result(process.returncode, stdout, stderr, time.monotonic() - start_s)
        if check and result.returncode:
            pytest.fail(f"{' '.join(map(str, command))} ended with {result.returncode}:\n{result.output[-6000:]}")
        return result

    def python(self, *arguments: str | Path, **options: Any) -> Result:
        return self.run(sys.executable, *arguments, **options)

    def dvc(self, *arguments: str | Path, **options: Any) -> Result:
        return self.python("-m", "dvc", *arguments, **options)

    def git(self, *arguments: str | Path) -> str:
        return self.run("git", *arguments, timeout_s=60).stdout.strip()

    def commit(self, message: str) -> None:
        """Commit every change that Git does not ignore."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)

    def profile(self, name: str) -> None:
        self.python("-m", "gpt2core", "profile", name, "--force", timeout_s=60, PYTHONPATH=str(self.root))

    def set_params(self, values: dict[str, Any]) -> None:
        """Change values of params.yaml, named as `section.key`."""
        yaml = YAML()
        path = self.root / "params.yaml"
        params = yaml.load(path)
        for name, value in values.items():
            section, _, key = name.rpartition(".")
            (params[section] if section else params)[key] = value
        yaml.dump(params, path)

    def lock(self) -> dict[str, Any]:
        """dvc.lock's stages."""
        return YAML(typ="safe").load(self.root / "dvc.lock")["stages"]

    def copy_to(self, root: Path) -> Project:
        """A copy with all that was made so far, but without runs in MLflow: its store knows absolute paths."""
        ignored = shutil.ignore_patterns("mlflow.db*", "mlartifacts")
        shutil.copytree(self.root, root, symlinks=True, ignore=ignored)
        return Project(root, self.env)


def environment(root: Path) -> dict[str, str]:
    """Return the variables for commands in the clone `root`: none of the surroundings decides what they do."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    env.pop("PYTHONPATH", None)
    return env | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # the stages' `python` is ours
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(root.parent / f"{root.name}-dvc-site"),
        "GPT2CORE_TRACKING": "off",
        "OMP_NUM_THREADS": "1",  # two clones run at once; last bits depend on the number of threads
    }


def clone(root: Path) -> Project:
    """Clone the repository with its uncommitted changes, so that the tests look at the working tree."""
    env = environment(root)
    project = Project(root, env)
    changed = {*_git_names("diff", "--name-only", "HEAD"), *_git_names("ls-files", "--others", "--exclude-standard")}
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True, timeout=120, env=env)
    for name in sorted(changed):
        source, copy = ROOT / name, root / name
        if source.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
        else:
            copy.unlink(missing_ok=True)
    project.git("config", "user.name", "test")
    project.git("config", "user.email", "test@example.invalid")
    project.git("config", "commit.gpgsign", "false")
    project.commit("the working tree")
    where = project.python("-c", "import gpt2core, stages; print(gpt2core.__file__)", timeout_s=60).stdout
    assert Path(where.strip()).is_relative_to(root), f"the clone imports another package: {where}"
    return project


def _git_names(*command: str) -> list[str]:
    """The files that a git command lists in this working tree."""
    listed = subprocess.run(
        ["git", *command, "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if name]


def reproduced(folder: Path, tracking: str) -> Project:
    """Return the clean clone in which the profile `tiny` was reproduced, with tracking "on" or "off".

    All processes of a test run share it: the first one that needs it makes it, the others wait.
    """
    root, done = folder / f"tracking-{tracking}", folder / f"tracking-{tracking}.done"
    project = Project(root, environment(root) | {"GPT2CORE_TRACKING": tracking})
    with files.lock(folder / f"tracking-{tracking}.lock"):
        if not done.exists():
            shutil.rmtree(root, ignore_errors=True)
            clone(root)
            for name in ("embedded", "tiny"):
                project.profile(name)
                project.commit(f"the profile {name}")
            project.dvc("repro", timeout_s=420)
            done.touch()
    return project


@pytest.fixture(scope="session")
def tiny_twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Project]:
    """Two clean clones in which the profile `tiny` was reproduced, to read; the first one with tracking."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with ThreadPoolExecutor() as pool:  # each on one core
        tracked, untracked = pool.map(functools.partial(reproduced, shared / "tiny"), ("on", "off"))
    return tracked, untracked


@pytest.fixture(autouse=True)
def _native_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that a test calls here computes natively: portable numerics are set up before PyTorch is imported."""
    monkeypatch.setattr(numerics, "start", lambda mode, with_torch=True: None)
