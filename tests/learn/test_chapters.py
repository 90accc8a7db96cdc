"""Every code block of every chapter runs, in order; the source shown is the package's; every picture is made."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import chapters
import diagrams
import pictures
import pytest

from gpt2core.errors import UserError
from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "learn"
CHAPTERS = sorted(FOLDER.glob("[0-9]*.md"))
PAGES = [*CHAPTERS, FOLDER / "diagrams.md"]
PARTS = [
    "The formula", "On paper", "Code it yourself", "The code", "A picture", "What goes wrong without it", "Exercises",
]  # fmt: skip
SLOW = {"08", "09", "10", "11"}  # they train small models
PICTURE = re.compile(r"!\[[^]]+\]\((img/[\w-]+\.svg)\)")


def marked(path: Path) -> object:
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem[:2] in SLOW else [])


@pytest.mark.parametrize("path", [marked(path) for path in PAGES])
def test_a_chapter_runs_and_makes_its_pictures(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2CORE_MIRROR", raising=False)
    chapters.run(path)
    made = {str(svg.relative_to(tmp_path)) for svg in tmp_path.rglob("*.svg")}
    assert made == set(PICTURE.findall(path.read_text(encoding="utf-8")))
    for name in made:
        ET.parse(tmp_path / name)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "<dc:date>" not in text  # or no two runs would make the same bytes


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_chapter_shows_the_packages_source_and_committed_pictures(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert chapters.with_sources(text) == text, "run: python tools/docs/chapters.py docs/learn"
    for name in PICTURE.findall(text):
        assert (FOLDER / name).is_file()


def test_no_picture_is_left_over() -> None:
    shown = {name for path in PAGES for name in PICTURE.findall(path.read_text(encoding="utf-8"))}
    assert {f"img/{svg.name}" for svg in (FOLDER / "img").glob("*.svg")} == shown


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_all_its_parts(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not path.stem.startswith("12"):  # the theory has an order of its own
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
    exercises = text.partition("## Exercises")[2]
    solutions = re.findall(r"<details markdown=\"1\"><summary>Solution</summary>(.*?)</details>", exercises, re.DOTALL)
    assert len(re.findall(r"^\*\*\d\.\*\*", exercises, re.MULTILINE)) == len(solutions) == 3
    assert all("assert" in solution for solution in solutions)


def test_there_are_eleven_chapters_and_the_theory() -> None:
    assert [path.stem[:2] for path in CHAPTERS] == [f"{number:02}" for number in range(1, 13)]


def test_an_error_names_the_chapters_line(tmp_path: Path) -> None:
    chapter = tmp_path / "01-wrong.md"
    chapter.write_text("# A\n\n```python\nx = 1\n```\n\nText.\n\n```python\nassert x == 1\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as raised:
        chapters.run(chapter)
    last = raised.traceback[-1]
    assert (str(last.path), last.lineno + 1) == (str(chapter), 11)


def test_sources_are_filled_in_and_unknown_ones_refused() -> None:
    text = "<!-- source: losses.perplexity -->\n```python\nold\n```\n"
    assert "def perplexity(loss: float) -> float:" in chapters.with_sources(text)
    assert chapters.with_sources(chapters.with_sources(text)) == chapters.with_sources(text)
    with pytest.raises(UserError, match="gpt2core.learn has no losses.nothing"):
        chapters.with_sources(text.replace("perplexity", "nothing"))


def test_the_same_picture_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = [[0.1 * i * j for i in range(5)] for j in range(4)]
    for name in ("a", "b"):
        pictures.heatmaps(f"{name}-map", {"m": matrix}, rows=list("wxyz"), columns=list("12345"))
        pictures.surface(f"{name}-surface", matrix, "x", "y", "z")
        pictures.curves(f"{name}-curves", {"one": ([1, 2], [3, 4]), "two": ([1, 2], [4, 3])}, "x", "y", log="x")
        pictures.bars(f"{name}-bars", {"g": {"p": 1, "q": 2}, "h": {"p": 2, "q": 1}}, "y", stacked=True)
    for kind in ("map", "surface", "curves", "bars"):
        assert (tmp_path / f"img/a-{kind}.svg").read_bytes() == (tmp_path / f"img/b-{kind}.svg").read_bytes()


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_a_diagram_says_the_same_in_every_form(name: str) -> None:
    diagram = diagrams.DIAGRAMS[name]
    tex = (FOLDER / "tikz" / f"{name}.tex").read_text(encoding="utf-8")
    assert tex == diagrams.tikz(diagram), "run: python tools/docs/chapters.py docs/learn"
    svg = (FOLDER / "img" / f"{name}.svg").read_text(encoding="utf-8")
    mermaid = diagrams.mermaid(diagram)
    for node in diagram.nodes.values():
        assert f"{{{node.text}}}" in tex and f">{node.text}</text>" in svg and f'"{node.text}"' in mermaid
    drawn = set(re.findall(r"\\draw\[->\] \((\w+)\) -- .*\((\w+)\);", tex))
    assert drawn == set(re.findall(r"(\w+) --> (\w+)", mermaid)) == {edge[:2] for edge in diagram.edges}
