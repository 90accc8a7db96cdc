"""`make params`: a params.yaml of an older version keeps its values and comments and runs again."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from gpt2core.config import renames
from gpt2core.errors import UserError
from gpt2core.params import load_params, read_values
from gpt2core.params.update import update_file, updated
from tests.stages.conftest import clone

OLD = (Path(__file__).parent / "params_9f08171.yaml").read_text(encoding="utf-8")  # params.yaml of that commit
EDITS = {  # old line -> a user's line
    "  sms: embedded           # embedded": "  sms: own/topics.tsv     # my topics; not embedded",
    "  vocab_size: 960     #": "  vocab_size: 700     #",
    "  max_steps: 480      # updates; 480 * 8 * 256 = 1 million tokens": "  # half of it is enough\n  max_steps: 240",
    "  seeds: [1, 2, 3]    #": "  seeds:\n    - 5  # lucky\n    - 6\n    #",
    "  lr: 0.0025          #": "  lr: 2e-3            # mine:",
}
VALUES = {
    ("data", "classification"): "own/topics.tsv",
    ("tokenizer", "vocab_size"): 700,
    ("pretrain", "max_steps"): 240,
    ("finetune_classify", "seeds"): [5, 6],
    ("finetune_instruct", "lr"): 0.002,
}


def edited() -> str:
    text = OLD
    for old, new in EDITS.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(edited(), encoding="utf-8")
    return path


def test_an_older_file_is_refused_with_the_command_that_updates_it(old_file: Path) -> None:
    with pytest.raises(UserError, match="finetune_classify.optimizer: missing.*make params"):
        load_params(old_file)


def test_it_keeps_values_and_comments_and_adds_what_is_missing(old_file: Path) -> None:
    before = YAML(typ="safe").load(edited())
    changes = update_file(old_file)
    params = load_params(old_file).model_dump()
    for (section, key), value in VALUES.items():
        assert params[section][key] == value
    for section, rows in before.items():
        for key, value in rows.items() if isinstance(rows, dict) else ():
            new = renames.PARAMS.get(f"{section}.{key}", f"{section}.{key}").partition(".")[2]
            assert params[section][new] == ("random" if (section, key) == ("pretrain", "init") else value)
    text = old_file.read_text(encoding="utf-8")
    for comment in ("# my topics; not embedded", "  # half of it is enough", "    - 5  # lucky", "# mine:"):
        assert comment in text
    assert old_file.with_name("params.yaml.old").read_text(encoding="utf-8") == edited()

    lines = list(difflib.ndiff(edited().splitlines(), text.splitlines()))
    removed = [line[2:].split(":")[0].strip() for line in lines if line.startswith("- ")]
    assert removed == ["sms", "sms_label_column", "sms_text_column", "init", "patience_epochs"], (
        "all other lines stay as they are"
    )
    added = {line.split(":")[0].removeprefix("added ") for line in changes if line.startswith("added")}
    assert added == _names(params) - _names(before) - set(renames.PARAMS.values())
    renamed = {line.split(":")[0].removeprefix("renamed ") for line in changes if line.startswith("renamed")}
    assert renamed == {*renames.PARAMS, "pretrain.init"}


def _names(values: dict[str, Any]) -> set[str]:
    return {
        f"{section}.{key}" if isinstance(rows, dict) else section
        for section, rows in values.items()
        for key in (rows if isinstance(rows, dict) else [""])
    }


def test_a_present_file_stays_untouched(old_file: Path) -> None:
    assert update_file(old_file)
    text = old_file.read_text(encoding="utf-8")
    old_file.with_name("params.yaml.old").unlink()
    assert update_file(old_file) == []
    assert old_file.read_text(encoding="utf-8") == text
    assert not old_file.with_name("params.yaml.old").exists()


def test_missing_sections_and_an_empty_one_are_filled(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("# mine\nseed: 3\nevaluate:\n# the end\n", encoding="utf-8")
    update_file(path)
    assert load_params(path).seed == 3
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# mine\nseed: 3\n") and "# the end\n" in text


def test_a_key_that_is_gone_is_removed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renames.REMOVED, "pretrain.warm", "use warmup_steps")
    text, changes = updated("extends: embedded\npretrain:\n  warm:\n    - 1\n  # about lr\n  lr: 0.1\n")
    assert text == "extends: embedded\npretrain:\n  # about lr\n  lr: 0.1\n"
    assert changes == ["removed pretrain.warm: use warmup_steps"]


def test_a_profile_gets_new_names_and_no_keys(tmp_path: Path) -> None:
    text = "extends: seeds  # small\ndata:\n  sms: own/a.tsv\npretrain:\n  init: gpt2  # gpt2: random | induction\n"
    new, changes = updated(text)
    assert YAML(typ="safe").load(new) == {
        "extends": "public-small", "data": {"classification": "own/a.tsv"}, "pretrain": {"init": "random"},
    }  # fmt: skip
    assert len(changes) == 3
    assert "gpt2" not in new, "a comment that explains the old value is replaced"


@pytest.mark.parametrize("text", ["data: {sms: own/a.tsv}\n", "- 1\n", "a: [\n"])
def test_a_file_that_cannot_be_updated_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        update_file(path)
    assert path.read_text(encoding="utf-8") == text


def test_old_names_work_with_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: defaults\ndata:\n  sms: sms-spam-collection\npretrain:\n  init: gpt2\n"
    )
    params = load_params(tmp_path / "mine.yaml")
    assert (params.data.classification, params.pretrain.init) == ("sms-spam-collection", "random")
    assert "data.sms is now data.classification" in caplog.text
    assert "pretrain.init: gpt2 is now random" in caplog.text


def test_an_old_name_next_to_the_new_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: defaults\ndata:\n  sms: a\n  classification: b\n")
    with pytest.raises(UserError, match="data.sms: unknown key"):
        load_params(tmp_path / "mine.yaml")


@pytest.mark.slow
def test_dvc_runs_an_updated_file(tmp_path: Path) -> None:
    project = clone(tmp_path / "project")
    path = project.root / "params.yaml"
    path.write_text(edited().replace("own/topics.tsv", "embedded"), encoding="utf-8")
    project.commit("an older params.yaml with edits")
    refused = project.dvc("repro", "download-data", check=False, timeout_s=60)
    assert refused.returncode and "Could not find 'pretrain.base'" in refused.output  # README.md says what to do
    refused = project.python("-m", "gpt2core", "params", "--check", check=False, timeout_s=60)  # what `make repro` does
    assert refused.returncode == 1 and "pretrain.base: missing; `make params`" in refused.output
    shown = project.python("-m", "gpt2core", "params", timeout_s=60).stdout
    assert "data.sms" in shown
    project.dvc("repro", "tokenize", timeout_s=120)
    assert (project.root / "data/raw/classification.jsonl").exists()
    project.commit("the updated params.yaml")
    project.dvc("exp", "run", "--temp", "-S", "tokenizer.vocab_size=600", "-S", "seed=5", "tokenize", timeout_s=120)
    project.dvc("exp", "run", "-S", "finetune_classify.schedule=linear", "-S", "seed=5", "tokenize", timeout_s=120)
    values = read_values(path)
    assert (values["finetune_classify"]["schedule"], values["seed"]) == ("linear", 5)
    text = path.read_text(encoding="utf-8")
    assert "# half of it is enough" in text
    assert project.lock()["tokenize"]["params"]["params.yaml"]["seed"] == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda text: re.sub(r"^  (?=\S)", "    ", text, flags=re.MULTILINE),  # four spaces
        lambda text: re.sub(r"^mlflow:.*?(?=^\S|\Z)", "mlflow: null\n", text, flags=re.MULTILINE | re.DOTALL),
        lambda text: re.sub(r"^evaluate:.*?(?=^\S|\Z)", "evaluate: {}\n", text, flags=re.MULTILINE | re.DOTALL),
        lambda text: text.replace("\n", "\r\n"),
    ],
)
def test_files_of_another_form_are_updated(old_file: Path, change: Callable[[str], str]) -> None:
    text = change(old_file.read_text(encoding="utf-8"))
    old_file.write_bytes(text.encode())
    update_file(old_file)
    load_params(old_file)
    new = old_file.read_bytes().decode()
    assert ("\r\n" in new) == ("\r\n" in text)
    assert "\n" not in new.replace("\r\n", "") or "\r\n" not in new


@pytest.mark.parametrize("text", ["base: &base\n  lr: 0.1\npretrain:\n  <<: *base\n", "seed: 1\n...\n", "{seed: 1}\n"])
def test_files_that_cannot_be_edited_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"{path.name}.*(write each key on its own line|alias)"):
        update_file(path)
    assert path.read_text(encoding="utf-8") == text
    assert not path.with_name("params.yaml.old").exists()


def test_params_yaml_extends_nothing(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("extends: defaults\n", encoding="utf-8")
    with pytest.raises(UserError, match="make profile NAME="):
        load_params(tmp_path / "params.yaml")


def test_a_profile_that_extends_a_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: [a]\n", encoding="utf-8")
    with pytest.raises(UserError, match="extends"):
        load_params(tmp_path / "mine.yaml")
