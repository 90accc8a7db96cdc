"""MMLU's own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2core.errors import UserError
from gpt2core.evaluation.mmlu import read_mmlu


def test_questions_are_read_as_they_are_distributed(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "dev").mkdir()
    row = '"What is ""it"",\nhere?",a,"b, c",,d,C\n'
    (tmp_path / "test/high_school_physics_test.csv").write_text(row * 2)
    (tmp_path / "dev/high_school_physics_dev.csv").write_text(row)
    expected = {"question": 'What is "it",\nhere?', "choices": ["a", "b, c", "", "d"], "answer": 2}
    assert read_mmlu(tmp_path) == {"high_school_physics": {"test": [expected] * 2, "dev": [expected]}}
    (tmp_path / "dev/high_school_physics_dev.csv").unlink()
    assert list(read_mmlu(tmp_path)["high_school_physics"]) == ["test"]
    with pytest.raises(UserError, match="high_school_physics_dev.csv: no such file"):
        read_mmlu(tmp_path, needs_dev=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("q,a,b,c,d,A\nq,a,b,c,A\n", "row 2: must be a question, four choices and a letter"),
        ("q,a,b,c,d,E\n", "row 1: must be"),
        ('q,a,b,c,d,"A\n', "no CSV"),
        ("", "is empty"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test/law_test.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        read_mmlu(tmp_path)


def test_a_folder_without_subjects_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no test/SUBJECT_test.csv"):
        read_mmlu(tmp_path)
