"""`scripts/use_profile.py`: profiles are whole and sound, and an edited params.yaml is not lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gpt2core.config import load_params

ROOT = Path(__file__).parent.parent
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the profiles, and the default one as params.yaml."""
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    shutil.copy(ROOT / "profiles/embedded.yaml", tmp_path / "params.yaml")
    return tmp_path


def profile(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/use_profile.py"), *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)


def same(project: Path, name: str) -> bool:
    return (project / "params.yaml").read_bytes() == (project / f"profiles/{name}.yaml").read_bytes()


def test_the_profiles_that_the_readme_names_are_there() -> None:
    assert {"embedded", "tiny", "seeds", "novels", "gpt2-124m", "gpt2-355m"} <= set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_sound_and_every_value_is_commented(name: str) -> None:
    path = ROOT / f"profiles/{name}.yaml"
    load_params(path)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        key, colon, value = line.partition(":")
        if colon and not line.lstrip().startswith("#") and value.strip():
            assert " # " in line, f"{path.name}, line {number}: {key.strip()} has no comment"


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_have_the_same_keys_in_the_same_order(name: str) -> None:
    def keys(profile: str) -> list[str]:
        values = YAML(typ="safe").load(ROOT / f"profiles/{profile}.yaml")
        return [
            f"{section}.{key}" for section, rows in values.items() for key in (rows if isinstance(rows, dict) else [""])
        ]

    assert keys(name) == keys("embedded")


def test_the_default_profile_is_the_committed_params() -> None:
    """In the last commit, since the working tree may have another profile."""

    def committed(name: str) -> bytes:
        return subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, check=True).stdout

    assert committed("params.yaml") == committed("profiles/embedded.yaml")


def test_it_copies_byte_for_byte(project: Path) -> None:
    done = profile(project, "tiny")
    assert done.returncode == 0, done.stderr
    assert same(project, "tiny")
    assert "tiny" in done.stdout
    assert profile(project, "seeds").returncode == 0  # from one profile to the next
    assert same(project, "seeds")


def test_it_brings_params_where_there_are_none(project: Path) -> None:
    (project / "params.yaml").unlink()
    assert profile(project, "tiny").returncode == 0
    assert same(project, "tiny")


def test_it_keeps_edited_params_unless_forced(project: Path) -> None:
    edited = (project / "params.yaml").read_text(encoding="utf-8").replace("seed: 1234", "seed: 4321")
    (project / "params.yaml").write_text(edited, encoding="utf-8")
    refused = profile(project, "tiny")
    assert refused.returncode == 1
    assert "FORCE=1" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (project / "params.yaml").read_text(encoding="utf-8") == edited
    assert profile(project, "tiny", "--force").returncode == 0
    assert same(project, "tiny")


@pytest.mark.parametrize("name", ["no-such", "", "../params", "tiny.yaml"])
def test_it_lists_the_profiles_for_a_name_that_is_none(project: Path, name: str) -> None:
    refused = profile(project, name)
    assert refused.returncode == 1
    assert "gpt2-124m" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert same(project, "embedded")


def test_it_refuses_a_profile_that_is_wrong(project: Path) -> None:
    mine = (project / "profiles/tiny.yaml").read_text(encoding="utf-8").replace("kind: chrf", "kind: oracle")
    (project / "profiles/mine.yaml").write_text(mine, encoding="utf-8")
    refused = profile(project, "mine")
    assert refused.returncode == 1
    assert "judge.kind" in refused.stderr
    assert same(project, "embedded")


def test_make_passes_name_and_force_on() -> None:
    """What `make profile NAME=… FORCE=1` would run, without the set-up that it depends on."""
    if shutil.which("make") is None:
        pytest.skip("make is missing: install it")

    def shown(*given: str) -> str:
        command = ["make", "--no-print-directory", "--dry-run", "profile", *given]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        return " ".join(done.stdout.replace('"', "").split())

    assert shown("NAME=seeds").endswith("scripts/use_profile.py seeds")
    assert shown("NAME=seeds", "FORCE=1").endswith("scripts/use_profile.py seeds --force")


@pytest.mark.parametrize("name", PROFILES)
def test_small_profiles_are_portable_and_large_ones_native(name: str) -> None:
    is_large = name == "novels" or name.startswith("gpt2-")
    assert load_params(ROOT / f"profiles/{name}.yaml").numerics == ("native" if is_large else "portable")
