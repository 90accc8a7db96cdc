"""Profiles: valid overlays of the defaults, rendered as a complete params.yaml; edits of params.yaml are not lost."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from gpt2core.cli.params import profile as profile_command
from gpt2core.errors import UserError
from gpt2core.params import load_params, read_values
from gpt2core.params.profiles import render_profile

ROOT = Path(__file__).parent.parent
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the profiles, and the default one as params.yaml."""
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "params.yaml").write_text(rendered("embedded"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def profile(*arguments: str) -> Result:
    return CliRunner().invoke(profile_command, arguments)


def rendered(name: str) -> str:
    return render_profile(ROOT / f"profiles/{name}.yaml")


def is_profile(project: Path, name: str) -> bool:
    return (project / "params.yaml").read_text(encoding="utf-8") == rendered(name)


def test_the_profiles_that_the_readme_names_exist() -> None:
    assert {
        "embedded",
        "tiny",
        "public-small",
        "novels",
        "novels-continued",
        "shakespeare-124m",
        "fineweb-124m",
        "fineweb-124m-rehearsal",
        "gpt2-124m",
        "gpt2-355m",
        "gpt2-355m-five-epochs",
    } == set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_has_only_the_keys_that_it_changes(name: str) -> None:
    path = ROOT / f"profiles/{name}.yaml"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 52
    overlay = YAML(typ="safe").load(path)
    base = overlay.pop("extends")
    if name == "embedded":
        assert base == "defaults"
        return
    below = read_values(ROOT / f"profiles/{base}.yaml")
    for section, rows in overlay.items():
        assert rows != below[section]
        if isinstance(rows, dict):
            assert [key for key in rows if rows[key] == below[section][key]] == []


@pytest.mark.parametrize("name", PROFILES)
def test_a_rendered_profile_has_all_keys_in_the_same_order_with_comments(name: str) -> None:
    """DVC's -S changes only keys that params.yaml has."""

    def keys(text: str) -> list[str]:
        values = YAML(typ="safe").load(text)
        return [
            f"{section}.{key}" for section, rows in values.items() for key in (rows if isinstance(rows, dict) else [""])
        ]

    text = rendered(name)
    assert keys(text) == keys(rendered("embedded"))
    for number, line in enumerate(text.splitlines(), start=1):
        key, colon, value = line.partition(":")
        if colon and not line.lstrip().startswith("#") and value.strip():
            assert " # " in line, f"{name}, line {number}: {key.strip()} has no comment"


@pytest.mark.parametrize("name", PROFILES)
def test_yaml_1_1_and_1_2_read_a_rendered_profile_alike(name: str) -> None:
    """DVC reads YAML 1.2, PyYAML 1.1: 6e-4 and on would differ."""
    values = read_values(ROOT / f"profiles/{name}.yaml")
    assert yaml.safe_load(rendered(name)) == YAML(typ="safe").load(rendered(name)) == values


def test_the_committed_params_are_the_rendered_default_profile() -> None:
    """In the last commit, since the working tree may have another profile."""
    committed = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=ROOT, capture_output=True, check=True).stdout
    assert committed.decode() == rendered("embedded"), "run: make profile NAME=embedded FORCE=1"


def test_a_profiles_own_comment_replaces_the_description(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# Mine.\nextends: defaults\nseed: 7  # lucky\npretrain:\n  lr: 0.00001\n")
    text = render_profile(tmp_path / "mine.yaml")
    assert text.startswith("# Mine.\n")
    (seed,) = (line for line in text.splitlines() if line.startswith("seed:"))
    assert seed.split() == ["seed:", "7", "#", "lucky"]
    assert "  lr: 0.00001 " in text


@pytest.mark.parametrize("base", ["no-such", "mine", "other"])
def test_extends_names_another_profile(tmp_path: Path, base: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: {base}\n")
    (tmp_path / "other.yaml").write_text("extends: mine\n")
    with pytest.raises(UserError, match="extends: "):
        load_params(tmp_path / "mine.yaml")


def test_it_writes_the_rendered_profile(project: Path) -> None:
    done = profile("tiny")
    assert done.exit_code == 0, done.output
    assert is_profile(project, "tiny")
    assert "tiny" in done.output
    assert profile("public-small").exit_code == 0  # from one profile to the next
    assert is_profile(project, "public-small")


def test_the_old_name_of_a_profile_works(project: Path) -> None:
    done = profile("seeds")
    assert done.exit_code == 0, done.output
    assert is_profile(project, "public-small")
    assert "public-small" in done.output


def test_it_writes_params_if_there_are_none(project: Path) -> None:
    (project / "params.yaml").unlink()
    assert profile("tiny").exit_code == 0
    assert is_profile(project, "tiny")


def test_it_keeps_edited_params_unless_forced(project: Path) -> None:
    edited = (project / "params.yaml").read_text(encoding="utf-8").replace("seed: 1234", "seed: 4321")
    (project / "params.yaml").write_text(edited, encoding="utf-8")
    refused = profile("tiny")
    assert isinstance(refused.exception, UserError)
    assert "FORCE=1" in str(refused.exception)
    assert (project / "params.yaml").read_text(encoding="utf-8") == edited
    assert profile("tiny", "--force").exit_code == 0
    assert is_profile(project, "tiny")


@pytest.mark.parametrize("name", ["no-such", "", "../params", "tiny.yaml"])
def test_it_lists_the_profiles_for_an_unknown_name(project: Path, name: str) -> None:
    refused = profile(name)
    assert isinstance(refused.exception, UserError)
    assert "gpt2-124m" in str(refused.exception)
    assert is_profile(project, "embedded")


def test_it_refuses_a_profile_with_errors(project: Path) -> None:
    mine = (project / "profiles/tiny.yaml").read_text(encoding="utf-8") + "  kind: oracle\n"
    (project / "profiles/mine.yaml").write_text(mine, encoding="utf-8")
    refused = profile("mine")
    assert "judge.kind" in str(refused.exception)
    assert is_profile(project, "embedded")


def test_make_passes_name_and_force_on() -> None:
    """What `make profile NAME=… FORCE=1` would run, without the set-up that it depends on."""
    if shutil.which("make") is None:
        pytest.skip("make is missing: install it")

    def shown(*given: str) -> str:
        command = ["make", "--no-print-directory", "--dry-run", "profile", *given]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        return " ".join(done.stdout.replace('"', "").split())

    assert shown("NAME=tiny").endswith("gpt2core profile tiny")
    assert shown("NAME=tiny", "FORCE=1").endswith("gpt2core profile tiny --force")


@pytest.mark.parametrize("name", PROFILES)
def test_small_profiles_are_portable_and_large_ones_native(name: str) -> None:
    is_large = name.startswith(("novels", "gpt2-", "shakespeare-124m", "fineweb-124m"))
    assert load_params(ROOT / f"profiles/{name}.yaml").numerics == ("native" if is_large else "portable")
