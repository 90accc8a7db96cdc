"""The profiles of published runs have the settings that docs/published.md gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2core.params import load_params
from gpt2core.tasks import instructions

ROOT = Path(__file__).parents[1]
TABLES = {"finetune_classify": "gpt2-124m", "finetune_instruct": "gpt2-355m"}


def settings(section: str) -> dict[str, Any]:
    """The keys of a section's table, with the values of the profile."""
    text = (ROOT / "docs/published.md").read_text(encoding="utf-8")
    table = text.split(f"| key of `{section}` |", 1)[1].split("\n\n", 1)[0]
    return {key: yaml.safe_load(value) for key, value in re.findall(r"^\| `(\w+)` \|[^|]*\| `([^`]*)` \|", table, re.M)}


@pytest.mark.parametrize("section", TABLES)
def test_the_table_has_the_values_of_the_profile(section: str) -> None:
    values = load_params(ROOT / f"profiles/{TABLES[section]}.yaml").model_dump()[section]
    shown = settings(section)
    assert len(shown) > 15
    assert shown == {key: values[key] for key in shown}


@pytest.mark.parametrize("section", TABLES)
def test_every_key_that_the_profile_changes_is_in_the_table(section: str) -> None:
    values = load_params(ROOT / f"profiles/{TABLES[section]}.yaml").model_dump()[section]
    below = load_params(ROOT / "profiles/embedded.yaml").model_dump()[section]
    assert {key for key in values if values[key] != below[key]} <= settings(section).keys()


def test_the_second_run_differs_in_its_epochs_and_its_checkpoint() -> None:
    two, five = (load_params(ROOT / f"profiles/gpt2-355m{name}.yaml").model_dump() for name in ("", "-five-epochs"))
    assert five["finetune_instruct"] | {"epochs": 2, "checkpoint_steps": []} == two.pop("finetune_instruct")
    five.pop("finetune_instruct")
    assert five == two


def test_the_ordered_split_is_that_of_llms_from_scratch(mirror: Path) -> None:
    """Its sizes, and its first test entry: number 936 of 1,100."""
    entries = instructions.read(mirror / "instruction-data/instruction-data.json")
    params = load_params(ROOT / "profiles/gpt2-355m.yaml").finetune_instruct
    splits = instructions.split_in_order(entries, params.val_fraction, params.test_fraction)
    assert [len(split) for split in splits] == [935, 55, 110]  # training, validation, test
    assert splits.test[0]["instruction"] == "Rewrite the sentence using a simile."
    assert [*splits.train, *splits.test, *splits.val] == entries
