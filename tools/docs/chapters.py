"""Run the code blocks of the chapters in docs/learn, and write the source that they show and the output below them.

python tools/docs/chapters.py docs/learn
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
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

# A fenced block of Python, the mark that may be in the line before it, <!-- source: losses.softmax -->, and its output.
DIFFERS = " (it can differ on your machine)"  # written after "Output" by the author, for generated text
BLOCK = re.compile(
    r"(?:^<!-- source: (?P<source>[\w.]+) -->\n)?^```python\n(?P<code>.*?)^```$"
    rf"(?:\n\nOutput(?P<differs>{re.escape(DIFFERS)})?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
# Numbers that another CPU may round differently: with a decimal point, an exponent, or a percent sign.
ROUNDED = re.compile(r"-?\b\d[\d,]*(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+|(?=%))")
DIAGRAM = re.compile(r"^<!-- diagram: ([\w-]+) -->\n```mermaid\n.*?^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block of a chapter.

    Args:
        line: its first line in the file.
        code: its text.
        source: the name in `gpt2core.learn` whose source it shows.
        output: what it printed when the chapter was last run.
        differs: whether this is generated text, which can differ between machines.
    """

    line: int
    code: str
    source: str | None
    output: str
    differs: bool


def blocks(path: Path) -> Iterator[Block]:
    """Yield the Python blocks of a chapter, in order."""
    text = files.read_text(path)
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(line, match["code"], match["source"], match["output"] or "", bool(match["differs"]))


def run(path: Path) -> list[str]:
    """Run a chapter's blocks in one namespace; return what each printed. A traceback has the chapter's line numbers."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for block in blocks(path):
        code = "\n" * (block.line - 1) + block.code
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, str(path), "exec", dont_inherit=True), namespace)
        outputs.append("".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines()))
    return outputs


def is_current(block: Block, output: str) -> bool:
    """Return whether the output in a chapter is right: rounded numbers may differ by 5% or two units of the last digit.

    Text that can differ between machines must only have the same number of lines.
    """
    if block.differs:
        return block.output.count("\n") == output.count("\n") > 0
    if ROUNDED.sub("", block.output) != ROUNDED.sub("", output):
        return False
    return all(
        abs(_number(old) - _number(new)) <= max(0.05 * abs(_number(old)), 2.01 * _last_digit(old))
        for old, new in zip(ROUNDED.findall(block.output), ROUNDED.findall(output), strict=True)
    )


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _last_digit(text: str) -> float:
    """Return the unit of the last digit of a number: 0.01 for 1.25."""
    digits, _, exponent = text.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def with_outputs(path: Path, outputs: list[str]) -> str:
    """Return a chapter's text with the output below each block; one that is still right stays as it is."""
    found = iter(zip(blocks(path), outputs, strict=True))

    def fill(match: re.Match[str]) -> str:
        block, output = next(found)
        if is_current(block, output):
            return match.group()
        code = match.group()[: match.end("code") - match.start()] + "```"
        return f"{code}\n\nOutput{match['differs'] or ''}:\n\n```text\n{output}```" if output else code

    return BLOCK.sub(fill, files.read_text(path))


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
        rest = match.group()[match.end("code") - match.start() :]
        return f"<!-- source: {match['source']} -->\n```python\n{source(match['source'])}{rest}"

    def draw(match: re.Match[str]) -> str:
        return f"<!-- diagram: {match[1]} -->\n```mermaid\n{diagrams.mermaid(diagrams.DIAGRAMS[match[1]])}```"

    return DIAGRAM.sub(draw, BLOCK.sub(fill, text))


def main(folder: str) -> None:
    """Fill in the source in all chapters of a folder, run them there, fill in their output, and write the diagrams."""
    chapters = sorted(Path(folder).resolve().glob("*.md"))
    if not chapters:
        raise UserError(f"{folder}: holds no chapter; give docs/learn")
    torch.set_num_threads(1)  # the models are tiny; another number would change the last bits, and so the pictures
    for path in chapters:
        files.write_text(path, with_sources(files.read_text(path)))
        sys.stderr.write(f"{path.name}\n")
        with contextlib.chdir(path.parent):
            files.write_text(path, with_outputs(path, run(path)))
    for name, diagram in diagrams.DIAGRAMS.items():
        files.write_text(Path(folder) / "tikz" / f"{name}.tex", diagrams.tikz(diagram))


if __name__ == "__main__":
    stage_main(lambda: main(*(sys.argv[1:] or ["docs/learn"])))
