"""The table of renames covers all that changed in names, and nothing changed in bytes."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from gpt2core.config.renames import OUTPUTS, PARAMS, PROFILES, VALUES
from gpt2core.metric_files import HEADLINES
from gpt2core.params.schema import all_keys, defaults

ROOT = Path(__file__).parents[2]
# Path and MD5 of each output file of the default profile that dvc.lock had at commit e004422.
BEFORE: dict[str, str] = json.loads((Path(__file__).parent / "outputs_e004422.json").read_text(encoding="utf-8"))
# Files that were added or changed on purpose since: model cards, other tools' files, headline metrics. No weights.
SINCE: dict[str, str] = json.loads((Path(__file__).parent / "outputs_since.json").read_text(encoding="utf-8"))
# Files that changed in their last digits, once: when small products of portable numerics got one thread.
ONE_THREAD: dict[str, str] = json.loads((Path(__file__).parent / "outputs_one_thread.json").read_text(encoding="utf-8"))

CLASSIFY = "metrics/finetune_classify.json"


@cache
def lock() -> dict[str, str]:
    """The MD5 of each output, as the last commit's dvc.lock has it."""
    text = subprocess.run(["git", "show", "HEAD:dvc.lock"], cwd=ROOT, capture_output=True, check=True).stdout
    return {out["path"]: out["md5"] for stage in yaml.safe_load(text)["stages"].values() for out in stage["outs"]}


def directory_md5(folder: str, md5s: dict[str, str]) -> str:
    """The MD5 that DVC gives a directory: that of the JSON list of its files."""
    rows = [
        {"md5": md5, "relpath": path.removeprefix(f"{folder}/")}
        for path, md5 in sorted(md5s.items())
        if path.startswith(f"{folder}/")
    ]
    return hashlib.md5(json.dumps(rows).encode()).hexdigest() + ".dir"


@pytest.mark.parametrize("path", lock())
def test_an_output_is_that_of_before_under_its_new_name(path: str) -> None:
    renamed = {OUTPUTS.get(old, old): md5 for old, md5 in BEFORE.items()} | SINCE | ONE_THREAD
    now = lock()[path]
    assert now == (directory_md5(path, renamed) if now.endswith(".dir") else renamed[path])


def test_no_weights_curve_or_result_has_changed_since() -> None:
    assert not [path for path in SINCE if Path(path).suffix in (".safetensors", ".csv", ".bin")]
    headlines = {f"metrics/headline/{name}.json" for name in HEADLINES}
    assert {path for path in SINCE if path.startswith("metrics/")} == {*headlines, CLASSIFY}


def test_the_classifiers_results_have_the_accuracy_of_all_splits_in_addition() -> None:
    shown = subprocess.run(["git", "show", f"HEAD:{CLASSIFY}"], cwd=ROOT, capture_output=True, check=True).stdout
    metrics = json.loads(shown)
    assert len(metrics.pop("kept_model")) == 6
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    assert (
        hashlib.md5(text.encode()).hexdigest() == {OUTPUTS.get(old, old): md5 for old, md5 in BEFORE.items()}[CLASSIFY]
    )


def test_no_output_is_lost() -> None:
    tops = tuple(f"{path}/" for path in lock())
    renamed = {OUTPUTS.get(old, old) for old in BEFORE}
    assert [path for path in sorted(renamed) if path not in lock() and not path.startswith(tops)] == []


def test_the_table_leads_from_names_that_are_gone_to_names_that_exist() -> None:
    present = {f"{section}.{key}" for section, key in all_keys()}
    assert set(PARAMS.values()) <= present and not set(PARAMS) & present
    assert all(old.partition(".")[0] == new.partition(".")[0] for old, new in PARAMS.items())
    assert all((ROOT / f"profiles/{new}.yaml").exists() for new in PROFILES.values())
    assert not any((ROOT / f"profiles/{old}.yaml").exists() for old in PROFILES)
    for name, values in VALUES.items():
        section, _, key = name.partition(".")
        assert defaults()[section][key] in values.values()
