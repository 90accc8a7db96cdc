"""Instructions: what is refused and how it is said, and splits that share no input."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from gpt2core.errors import UserError
from gpt2core.tasks.instructions import Entry, read, split

GOOD = {"instruction": "Name a colour.", "output": "Red."}


def entries(n: int) -> list[Entry]:
    """`n` entries; every fifth has the input of the one before it."""
    return [
        Entry(instruction=f"instruction {i}", input=f"input {i - (i % 5 == 4)}", output=f"output {i}") for i in range(n)
    ]


def test_a_missing_input_is_empty_and_other_keys_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "input": "è", "text": "…"}]))
    assert read(path) == [{**GOOD, "input": ""}, {**GOOD, "input": "è"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": GOOD}, "must be a list of entries, found an object"),
        ("text", "must be a list of entries, found str"),
        ([], "the list is empty"),
        ([GOOD, "text"], "entry 2: must be an object"),
        ([GOOD, GOOD, {"input": "", "output": "x"}], "entry 3: the key 'instruction' is missing; it has input, output"),
        ([{"instruction": "x"}], "entry 1: the key 'output' is missing"),
        ([{**GOOD, "instruction": " "}], "entry 1: instruction is empty"),
        ([{**GOOD, "output": ""}], "entry 1: output is empty"),
        ([{**GOOD, "output": 7}], "entry 1: output must be a text, found 7"),
        ([{**GOOD, "input": None}], "entry 1: input must be a text, found None"),
        ([{**GOOD, "output": "ab\ud83d"}], "entry 1: output has half of a surrogate pair at character 3"),
    ],
)
def test_errors_name_file_entry_and_key(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


@pytest.mark.parametrize(("content", "message"), [(b"", "not JSON"), (b'["caf\xe9"]', "not UTF-8")])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "own.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "own.json")


def test_splits_have_their_sizes_and_share_no_input() -> None:
    splits = split(entries(200), 0.1, 0.2, seed=5)
    assert [len(part) for part in splits] == [140, 20, 40]
    assert sorted(e["output"] for part in splits for e in part) == sorted(e["output"] for e in entries(200))
    for a, b in combinations(splits, 2):
        assert not {e["input"] for e in a} & {e["input"] for e in b}


def test_entries_without_input_are_told_apart_by_their_instruction() -> None:
    same = [Entry(instruction=f"instruction {i // 2}", input="", output=f"{i}") for i in range(40)]
    splits = split(same, 0.2, 0.2, seed=1)
    assert [len(part) for part in splits] == [24, 8, 8]
    for a, b in combinations(splits, 2):
        assert not {e["instruction"] for e in a} & {e["instruction"] for e in b}


def test_split_depends_on_the_seed_alone() -> None:
    assert split(entries(50), 0.1, 0.1, seed=1) == split(entries(50), 0.1, 0.1, seed=1)
    assert split(entries(50), 0.1, 0.1, seed=1).test != split(entries(50), 0.1, 0.1, seed=2).test
    # Written down once: the same on every machine and every Python.
    assert [e["output"] for e in split(entries(50), 0.1, 0.1, seed=1).test] == [
        "output 2",
        "output 37",
        "output 5",
        "output 43",
        "output 44",
    ]


@pytest.mark.parametrize("few", [entries(3), [Entry(instruction="i", input="same", output=f"{i}") for i in range(50)]])
def test_too_few_entries_are_refused(few: list[Entry]) -> None:
    with pytest.raises(UserError, match="too few instructions to split"):
        split(few, 0.1, 0.1, seed=0)


def test_the_real_entries_are_read(mirror: Path) -> None:
    real = read(mirror / "instruction-data" / "instruction-data.json")
    assert len(real) == 1100
    assert [len(part) for part in split(real, 0.05, 0.1, seed=1)] == [935, 55, 110]
