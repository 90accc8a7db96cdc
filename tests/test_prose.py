"""The check of the project's language."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools import prose

SAMPLES = [
    ("README.md", "It takes 3 ms a token.", ["per"]),
    ("README.md", "It takes 3 ms per token, next to a GPU.", []),
    ("README.md", "Beside it, training goes on.", ["next to, compared with", "continue"]),
    ("README.md", "```\nbeside\n```\nUse `beside`.", []),
    ("module.py", 'def f():\n    """Begin anew."""\n    beside = 1  # of the draws', ["start", "again"]),
    ("module.py", 'raise ValueError(f"{path}: the licence lies here")', ["is, was", "American spelling"]),
    ("module.py", 'help="Of the draws."', ["say what is done to what"]),
    ("params.yaml", "beside: 1  # tokenised text", ["American spelling: -ize"]),
    ("README.md", "The loss is told.", ["reported"]),
    ("messages.py", 'TEMPLATE = "Tom told us about the lamp."', []),
    ("diagrams.py", 'TEX = r"\\begin{document}"', []),
]


@pytest.mark.parametrize(("name", "text", "instead"), SAMPLES)
def test_words_are_found_in_prose_only(tmp_path: Path, name: str, text: str, instead: list[str]) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert sorted(finding.instead for finding in prose.findings(path)) == sorted(instead)


def test_a_finding_says_where_and_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("\nIt begins.")
    (finding,) = prose.findings(path)
    assert str(finding) == f"{path}:2: 'begins'; write: start"


def test_no_file_has_more_findings_than_its_baseline() -> None:
    result = CliRunner().invoke(prose.main)
    assert result.exit_code == 0, result.output


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one file that has two findings."""
    (tmp_path / "a.md").write_text("It lies beside.")
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    monkeypatch.setattr(prose, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(prose, "checked_files", lambda: ["a.md"])
    return tmp_path / "baseline.json"


@pytest.mark.parametrize(
    ("allowed", "exit_code", "after_update"),
    [(0, 1, {}), (1, 1, {"a.md": 1}), (2, 0, {"a.md": 2}), (3, 1, {"a.md": 2})],
)
def test_the_baseline_only_shrinks(baseline: Path, allowed: int, exit_code: int, after_update: dict[str, int]) -> None:
    baseline.write_text(json.dumps({"a.md": allowed} if allowed else {}))
    assert CliRunner().invoke(prose.main).exit_code == exit_code
    CliRunner().invoke(prose.main, ["--update"])
    assert json.loads(baseline.read_text()) == after_update
