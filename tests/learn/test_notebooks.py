"""Every chapter as a notebook: the same code in the same order, which test_chapters.py runs; two run as notebooks."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")

import chapters  # noqa: E402
import notebooks  # noqa: E402

from gpt2core.errors import UserError  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.learn.test_chapters import PAGES, PICTURE  # noqa: E402


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_notebook_has_the_chapters_code_and_nothing_of_the_page(path: Path) -> None:
    made = notebooks.notebook(path)
    code = [cell.source for cell in made.cells if cell.cell_type == "code"]
    assert code == [block.code.rstrip("\n") for block in chapters.blocks(path)]
    text = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert "<details" not in text and "</details>" not in text and "<!--" not in text and "\nOutput" not in text
    links = re.findall(r"\]\(((?:\d\d-[\w-]+|pytorch)\.\w+)", text)
    assert all(name in {f"{page.stem}.ipynb" for page in PAGES} for name in links)
    cells = [cell for cell in made.cells if cell.cell_type == "code"]
    shown = ["".join(output.text for output in cell.outputs) for cell in cells]
    assert shown == [block.output for block in chapters.blocks(path)] and any(shown)


@pytest.mark.slow
@pytest.mark.parametrize("path", [PAGES[0], PAGES[-1]], ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tools" / "docs"), prepend=os.pathsep)
    made = notebooks.notebook(path)
    nbclient.NotebookClient(made, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    for picture in PICTURE.findall(path.read_text(encoding="utf-8")):
        assert (tmp_path / picture).is_file()


def test_the_same_page_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        notebooks.main(str(PAGES[0].parent), str(tmp_path / name))
    made = sorted((tmp_path / "a").glob("*.ipynb"))
    assert [path.stem for path in made] == sorted(path.stem for path in PAGES)
    assert (tmp_path / "a" / "img" / "zipf.svg").is_file()  # what a notebook shows before it runs
    for path in made:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    with pytest.raises(UserError, match="holds no chapter"):
        notebooks.main(str(tmp_path / "a"), str(tmp_path / "c"))
