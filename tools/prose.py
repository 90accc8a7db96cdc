"""Check the language of docs, comments, docstrings, and messages: words that the project replaces by plain ones.

python tools/prose.py [FILE...]     # fails if these files (default: all of the project) have findings
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).parents[1]
CHECKED = ("*.md", "gpt2core/*.py", "stages/*.py", "scripts/*.py", "benchmarks/*.py", "tools/*.py", "params.yaml")
NOT_CHECKED = ("tools/prose.py",)  # it names the words
UNITS = "token|byte|step|run|second|minute|weight|batch|epoch|entry|row|message|document|word|line|core|process|task"

# pattern, and what to write instead; matched without regard to case
RULES = {
    rf"\b(nats|bits|bytes|tokens|loss|ms|GB|MB|rows|requests|once|one|times) an? ({UNITS})\b": "per",
    r"\bbeside\b": "next to, compared with",
    r"\bbehind\b": "after",
    r"\banew\b": "again",
    r"\blikewise\b": "also",
    r"\bat once\b": "immediately, together",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\btold\b(?! (me|you|him|her|us|them)\b)": "reported",
    r"\bto be had\b": "available",
    r"\b(go|goes|going|went) on\b": "continue",
    r"(?<!\\)\b(begins?|began|begun)\b": "start",  # not LaTeX's \begin
    r"\b(lies?|lay|stands?|stood)\b": "is, was",
    r"\bmakes? of (it|each|them|a)\b": "the output",
    r"\bthose that there are\b": "existing ones",
    r"\b(so many|as many as fit)\b": "n, up to capacity",
    r"\bthe (thinner|fewer)\b": "smaller",
    r"\bsays no\b": "disables it",
    r"\bare turned\b": "are transposed",
    r"\bfirst weights\b": "initial weights",
    r"(?-i:\bOf (the|its|all|a)\b)": "say what is done to what",
    r"\bholds? (\w+ ){1,3}to\b": "checks that",
    r"\bat this very\b": "already running",
    r"\bdetours?\b": "adapter",
    r"\bweights that learn\b": "parameters",
    r"\b\w*(tokenis|initialis|normalis|recognis|optimis)\w*\b": "American spelling: -ize",
    r"\b(licences?|colours?|behaviours?|neighbours?|labelled|grey)\b": "American spelling",
}


class Finding(NamedTuple):
    """A word that should be replaced."""

    path: str
    line: int
    words: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.words!r}; write: {self.instead}"


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(paths: tuple[Path, ...]) -> None:
    """Check the language of docs, comments, docstrings, and messages."""
    found = [finding for path in paths or checked_files() for finding in findings(path.resolve())]
    for finding in found:
        click.echo(finding)
    if found:
        raise click.ClickException(f"{len(found)} findings; replace the words")
    click.echo("no findings")


def checked_files() -> list[Path]:
    """Return the tracked files whose language is checked."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *CHECKED],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = (name for name in listed.stdout.splitlines() if name not in NOT_CHECKED)
    return sorted(ROOT / name for name in names if (ROOT / name).exists() and not (ROOT / name).is_symlink())


def findings(path: Path) -> list[Finding]:
    """Return the findings in the prose of a file."""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
    text = path.read_text(encoding="utf-8")
    prose = {".py": python_prose, ".yaml": yaml_prose}.get(path.suffix, markdown_prose)
    return [
        Finding(name, line, match.group().strip(), instead)
        for line, words in prose(text)
        for pattern, instead in RULES.items()
        for match in re.finditer(pattern, words, re.IGNORECASE)
    ]


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of comments and strings with their numbers."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield from enumerate(token.string.splitlines(), token.start[0])


def yaml_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the comments with their line numbers."""
    for number, line in enumerate(text.splitlines(), 1):
        yield number, line.partition("#")[2]


def markdown_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines outside of code blocks, without inline code, with their numbers."""
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, re.sub(r"`[^`]*`", "`", line)


if __name__ == "__main__":
    main()
