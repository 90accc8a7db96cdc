"""Run the code blocks of the chapters in docs/learn, and fill in the package's source that they show.

python tools/docs/chapters.py docs/learn
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diagrams
import torch

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.runtime import stage_main

# A fenced block of Python, and the mark that may be in the line before it: <!-- source: losses.softmax -->
BLOCK = re.compile(
    r"(?:^<!-- source: (?P<source>[\w.]+) -->\n)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
DIAGRAM = re.compile(r"^<!-- diagram: ([\w-]+) -->\n```mermaid\n.*?^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block: its first line in the file, its text, and the name in `gpt2core.learn` whose source it shows."""

    line: int
    code: str
    source: str | None


def blocks(path: Path) -> Iterator[Block]:
    """Yield the Python blocks of a chapter, in order."""
    text = files.read_text(path)
    for match in BLOCK.finditer(text):
        yield Block(text.count("\n", 0, match.start("code")) + 1, match["code"], match["source"])


def run(path: Path) -> dict[str, Any]:
    """Run a chapter's blocks in one namespace, which is returned; a traceback has the chapter's line numbers."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(path):
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, str(path), "exec", dont_inherit=True), namespace)
    return namespace


def source(name: str) -> str:
    """Return the source of `module.name` in `gpt2core.learn`, or of a whole module; UserError if there is none."""
    module, _, attribute = name.partition(".")
    try:
        shown: Any = importlib.import_module(f"gpt2core.learn.{module}")
        return inspect.getsource(getattr(shown, attribute) if attribute else shown)
    except (ImportError, AttributeError):
        raise UserError(f"<!-- source: {name} -->: gpt2core.learn has no {name}") from None


def with_sources(text: str) -> str:
    """Return a chapter's text with the present source or diagram in its marked blocks."""

    def fill(match: re.Match[str]) -> str:
        if not match["source"]:
            return match.group()
        return f"<!-- source: {match['source']} -->\n```python\n{source(match['source'])}```"

    def draw(match: re.Match[str]) -> str:
        return f"<!-- diagram: {match[1]} -->\n```mermaid\n{diagrams.mermaid(diagrams.DIAGRAMS[match[1]])}```"

    return DIAGRAM.sub(draw, BLOCK.sub(fill, text))


def main(folder: str) -> None:
    """Fill in the source in all chapters of a folder, run them there, and write the diagrams' TikZ."""
    chapters = sorted(Path(folder).resolve().glob("*.md"))
    if not chapters:
        raise UserError(f"{folder}: holds no chapter; give docs/learn")
    torch.set_num_threads(1)  # the models are tiny; another number would change the last bits, and so the pictures
    for path in chapters:
        files.write_text(path, with_sources(files.read_text(path)))
        sys.stderr.write(f"{path.name}\n")
        with contextlib.chdir(path.parent):
            run(path)
    for name, diagram in diagrams.DIAGRAMS.items():
        files.write_text(Path(folder) / "tikz" / f"{name}.tex", diagrams.tikz(diagram))


if __name__ == "__main__":
    stage_main(lambda: main(*(sys.argv[1:] or ["docs/learn"])))
