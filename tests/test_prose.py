"""The check of the project's language."""

from __future__ import annotations

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


def test_no_file_has_findings() -> None:
    result = CliRunner().invoke(prose.main)
    assert result.exit_code == 0, result.output


def test_a_file_with_findings_fails(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("It lies beside.")
    result = CliRunner().invoke(prose.main, [str(tmp_path / "a.md")])
    assert result.exit_code == 1 and result.output.endswith("Error: 2 findings; replace the words\n")
