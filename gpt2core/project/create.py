"""Writing a new project: files from the package's template, a Git repository, and DVC, complete or not at all."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from ruamel.yaml import YAML

from gpt2core import __version__, files, stage_code
from gpt2core.errors import UserError
from gpt2core.params import code
from gpt2core.params.load import load_params
from gpt2core.params.profiles import own_comments, profile_header
from gpt2core.params.render import render

HERE = Path(__file__).parent
TEMPLATE = HERE / "template"
NAME = re.compile(r"\w[\w.-]{0,99}")
PIPELINE_HEADER = f"""\
# The pipeline of gpt2core: eight stages, each a module of the installed package.
# `{code.FILE}` has a hash of the code of each.
"""
DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
    autostage = false
"""
OF_A_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")  # Git sets them in its hooks
LOCKS = ("requirements-torch.txt", "requirements.lock")
DECIDE_BYTES = ("torch", "numpy")


def create(folder: Path) -> bool:
    """Create a project in a new or empty folder.

    Returns:
        Whether its files are committed: False if Git knows no name and address of the user.

    Raises:
        UserError: the folder's name cannot be used, it exists and is not empty, its parent is missing or cannot be
            written, or git or dvc is missing or fails. Nothing is left in these cases.
    """
    _check(folder)
    folder = folder.absolute()
    try:
        with files.atomic_dir(folder) as work:
            _write_files(work)
            _start_dvc(work, folder)
            return _commit(work)
    except PermissionError:
        raise UserError(f"{folder.parent}: this folder cannot be written; choose another, or chmod u+w it") from None


def _check(folder: Path) -> None:
    """Raise UserError if a project cannot be created in this folder."""
    if not NAME.fullmatch(folder.name):
        raise UserError(
            f"{folder}: the last part must be a folder's name: letters, digits, '_', '-', '.', at most 100, the first "
            "a letter, a digit, or '_'; choose one, such as my-project"
        )
    if not folder.parent.is_dir():
        raise UserError(f"{folder.parent}: no such folder; create it first: mkdir -p {folder.parent}")
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError(f"{folder}: exists and is not an empty folder; choose another name or remove it")
    if shutil.which("git") is None:
        raise UserError("git: not found; a project is a Git repository: install git, such as: apt install git")
    if importlib.util.find_spec("dvc") is None:
        raise UserError(f"dvc: not found in {sys.prefix}; DVC runs the stages: pip install 'gpt2core[pipeline]'")


def _write_files(work: Path) -> None:
    """Write everything except what Git and DVC create."""
    shutil.copytree(TEMPLATE, work, dirs_exist_ok=True)
    (work / "gitignore").rename(work / ".gitignore")
    readme = (work / "README.md").read_text(encoding="utf-8")
    files.write_text(work / "README.md", readme.replace("NAME", work.name, 1).replace("VERSION", __version__, 1))
    for name in LOCKS:
        shutil.copyfile(HERE / name, work / name)
    files.write_text(work / "params.yaml", _params())
    files.write_text(work / code.FILE, code.render())
    files.write_text(work / "dvc.yaml", PIPELINE_HEADER + _pipeline())


def _params() -> str:
    """Return `params.yaml`: portable if the packages are those of the lock, since others may give other bits."""
    path = HERE / "profile.yaml"
    values = load_params(path).model_dump()
    lock = "".join((HERE / name).read_text(encoding="utf-8") for name in LOCKS)
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", lock, re.MULTILINE))
    is_locked = all(metadata.version(name).partition("+")[0] == pins[name] for name in DECIDE_BYTES)
    values["numerics"] = "portable" if is_locked else "native"
    text = files.read_text(path)
    return render(values, "\n".join(profile_header(text)), own_comments(text))


def _pipeline() -> str:
    """Return the repository's dvc.yaml with the stages as modules of the package, and their hashes as params."""
    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = files.read_text(HERE / "pipeline.yaml")
    pipeline = yaml.load(text[text.index("stages:") :])
    for name, stage in pipeline["stages"].items():
        stage = stage.get("do", stage)
        stage["cmd"] = stage["cmd"].replace("-m stages.", "-m gpt2core.stages.")
        stage["deps"][:] = [dep for dep in stage["deps"] if Path(dep).parts[0] not in stage_code.PACKAGES]
        if not stage["deps"]:
            del stage["deps"]
        if "params" not in stage:
            stage.insert(list(stage).index("cmd") + 1, "params", [])
        stage["params"].append({code.FILE: [name]})
    buffer = io.StringIO()
    yaml.dump(pipeline, buffer)
    return buffer.getvalue()


def _start_dvc(work: Path, folder: Path) -> None:
    """Make a Git repository and a DVC project, whose private site cache is in `folder`, where `work` will be."""
    site = work / ".dvc/tmp/site"
    _run(work, "git", "init", "--quiet")
    _run(work, sys.executable, "-m", "dvc", "init", "--quiet", env={"DVC_SITE_CACHE_DIR": str(site)})
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(mode=0o700, parents=True)
    files.write_text(work / ".dvc/config", DVC_CONFIG)
    files.write_text(work / ".dvc/config.local", f"[core]\n    site_cache_dir = {folder / site.relative_to(work)}\n")
    shutil.copytree(HERE / "plots", work / ".dvc/plots")


def _commit(work: Path) -> bool:
    """Commit all files as the user; only stage them, and return False, if Git knows no user."""
    _run(work, "git", "add", "--all")
    try:
        _run(
            work, "git", "-c", "user.useConfigOnly=true", "-c", "commit.gpgsign=false",
            "commit", "--quiet", "--no-verify", "--message", "Start from gpt2core new",
        )  # fmt: skip
    except UserError:
        return False
    return True


def _run(work: Path, *command: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command in the folder. Raises UserError with the first line of its message if it fails."""
    inherited = {name: value for name, value in os.environ.items() if name not in OF_A_REPOSITORY}
    done = subprocess.run(
        command, cwd=work, env=inherited | dict(env or {}), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        name = " ".join(command[-3:] if command[0] == sys.executable else command[:2])
        message = (done.stderr or done.stdout).strip().partition("\n")[0]
        raise UserError(f"{name} failed: {message}; fix this and run again")
