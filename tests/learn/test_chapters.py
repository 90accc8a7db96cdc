"""Every code block of every chapter runs, in order; its output, the source shown, and the pictures are current."""

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
# In the order in which a learner reads them; only these have code.
PAGES = [*CHAPTERS[:2], FOLDER / "pytorch.md", *CHAPTERS[2:]]
PARTS = [
    "The formula", "On paper", "Code it yourself", "The code", "A picture", "What goes wrong without it",
    "In the pipeline", "Exercises",
]  # fmt: skip
SLOW = {"05", "07", "10", "11", "12", "13", "14"}  # they train models
PICTURE = re.compile(r"!\[[^]]+\]\((img/[\w-]+\.svg)\)")
PIPELINE_LINK = re.compile(r"\(\.\./\.\./(gpt2core/[\w/.]+)\)")
# What is no prose: code, formulas, links, and headings, which may name what is defined later.
NO_PROSE = re.compile(
    r"^```.*?^```$|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\[[^]]*\]\([^)]*\)|^<[^\n]*>$|^#[^\n]*$", re.DOTALL | re.MULTILINE
)


def marked(path: Path) -> object:
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem[:2] in SLOW else [])


@pytest.mark.parametrize("path", [marked(path) for path in PAGES])
def test_a_chapter_runs_and_makes_its_pictures(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2CORE_MIRROR", raising=False)
    outputs = chapters.run(path)
    for block, output in zip(chapters.blocks(path), outputs, strict=True):
        assert chapters.is_current(block, output), f"line {block.line}; run: python tools/docs/chapters.py docs/learn"
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
    if not path.stem.startswith("15"):  # the theory has an order of its own
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
    exercises = text.partition("## Exercises")[2]
    solutions = re.findall(r"<details markdown=\"1\"><summary>Solution</summary>(.*?)</details>", exercises, re.DOTALL)
    assert len(re.findall(r"^\*\*\d\.\*\*", exercises, re.MULTILINE)) == len(solutions) == 3
    assert all("assert" in solution for solution in solutions)


def test_there_are_fifteen_chapters() -> None:
    assert [path.stem[:2] for path in CHAPTERS] == [f"{number:02}" for number in range(1, 16)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_block_that_checks_something_shows_it(path: Path) -> None:
    for block in chapters.blocks(path):
        if block.source is None and re.search(r"^ *assert |assert_close\(", block.code, re.MULTILINE):
            assert block.output or "pictures." in block.code, f"{path.name}:{block.line}: prints nothing"


def prose(path: Path) -> str:
    return NO_PROSE.sub(" ", path.read_text(encoding="utf-8"))


def glossary() -> list[tuple[str, str]]:
    """Each term, and the page that defines it."""
    text = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    return re.findall(r"^\| ([^|]+) \| .+ \| \[[\w-]+\]\(([\w-]+\.md)\) \|$", text, re.MULTILINE)


def test_the_glossary_names_each_term_once_in_the_order_of_the_course() -> None:
    terms = glossary()
    assert len(terms) > 80 and len({term for term, _ in terms}) == len(terms)
    places = [[path.name for path in PAGES].index(page) for _, page in terms]
    assert places == sorted(places)


@pytest.mark.parametrize(("term", "page"), glossary())
def test_a_term_is_defined_in_its_chapter_and_not_used_before(term: str, page: str) -> None:
    words = r"\s+".join(map(re.escape, term.split()))
    defined = re.compile(rf"\*{words}(e?s)?\*", re.IGNORECASE)
    used = re.compile(rf"(?<![\w-]){words}(e?s)?(?![\w-])", re.IGNORECASE)
    place = [path.name for path in PAGES].index(page)
    text = prose(PAGES[place])
    assert defined.search(text), f"{page} does not define *{term}*"
    first = used.search(text)
    assert first and first.start() == defined.search(text).start() + 1, f"{page} uses {term!r} before it defines it"
    for earlier in PAGES[:place]:
        found = used.search(prose(earlier))
        assert found is None, f"{earlier.name} uses {term!r}: {prose(earlier)[max(0, found.start() - 40) :][:100]}"


def test_chapters_and_the_architecture_link_to_each_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## Chapters of the course\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| \[.+\]\(learn/([\w-]+\.md)\) \| (.+) \|$", section, re.MULTILINE))
    for path in CHAPTERS:
        linked = list(dict.fromkeys(PIPELINE_LINK.findall(path.read_text(encoding="utf-8"))))
        assert linked and all((ROOT / name).is_file() for name in linked)
        assert re.findall(r"`([^`]+)`", rows[path.name]) == [name.removeprefix("gpt2core/") for name in linked]


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


def test_output_is_written_below_its_block_and_stays_if_it_is_still_right(tmp_path: Path) -> None:
    path = tmp_path / "01-page.md"
    path.write_text("# A\n\n```python\nx = 1 / 3\nprint(f'{x:.3f}')\n```\n\nText.\n\n```python\ny = x\n```\n\nEnd.\n")
    assert chapters.run(path) == ["0.333\n", ""]
    path.write_text(chapters.with_outputs(path, chapters.run(path)))
    assert "```\n\nOutput:\n\n```text\n0.333\n```\n\nText.\n\n```python\ny = x\n```\n\nEnd.\n" in path.read_text()
    written = path.read_text()
    assert chapters.with_outputs(path, ["0.334\n", ""]) == written  # another CPU rounds otherwise
    assert "0.400" in chapters.with_outputs(path, ["0.400\n", ""])
    assert "Output" not in chapters.with_outputs(path, ["", ""])


@pytest.mark.parametrize(
    ("old", "new", "is_current"),
    [
        ("a 1.00 b", "a 1.04 b", True), ("a 1.00 b", "a 1.10 b", False), ("0.3", "0.5", True), ("0.3", "0.6", False),
        ("93%", "95%", True), ("93%", "80%", False), ("12 words", "13 words", False), ("1.5e-07", "1.55e-07", True),
        ("1.5e-07", "1.5e-06", False), ("1,234.5", "1,240.0", True), ("1.0", "1.0 2.0", False),
        ("-0.50", "0.50", False),
    ],
)  # fmt: skip
def test_rounded_numbers_may_differ_a_little(old: str, new: str, is_current: bool) -> None:
    block = chapters.Block(1, "", None, old, differs=False)
    assert chapters.is_current(block, new) == is_current


def test_generated_text_may_differ_but_not_be_missing() -> None:
    block = chapters.Block(1, "", None, "Once there was a fox.\n", differs=True)
    assert chapters.is_current(block, "Once there was a weaver.\n")
    assert not chapters.is_current(block, "") and not chapters.is_current(block, "two\nlines\n")


def test_the_same_picture_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = [[0.1 * i * j for i in range(5)] for j in range(4)]
    for name in ("a", "b"):
        pictures.heatmaps(f"{name}-map", {"m": matrix}, rows=list("wxyz"), columns=list("12345"))
        pictures.curves(f"{name}-curves", {"one": ([1, 2], [3, 4]), "two": ([1, 2], [4, 3])}, "x", "y", log="x")
        pictures.bars(f"{name}-bars", {"g": {"p": 1, "q": 2}, "h": {"p": 2, "q": 1}}, "y", stacked=True)
    for kind in ("map", "curves", "bars"):
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


def test_the_residual_connections_of_a_block_do_not_touch() -> None:
    diagram = diagrams.FORWARD_PASS
    first, second = (diagrams.corners(diagram, edge) for edge in diagram.edges if edge.bent)
    assert max(y for _, y in first) < min(y for _, y in second)
