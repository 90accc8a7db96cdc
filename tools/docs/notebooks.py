"""Write each page of docs/learn that has code as a Jupyter notebook.

python tools/docs/notebooks.py docs/learn build/notebooks
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import chapters
import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_output

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.runtime import stage_main

# What a page needs and a notebook does not: marks, and what folds a solution away.
MARKS = re.compile(r"^<!-- .* -->\n", re.MULTILINE)
CHAPTER = re.compile(r"\]\((\d\d-[\w-]+|pytorch)\.md")  # a link to a page that is a notebook, too
FOLD = re.compile(r"^<details .*<summary>(.*)</summary>$", re.MULTILINE)


def notebook(path: Path) -> NotebookNode:
    """Return a page as a notebook whose cells are its blocks with their outputs, in the same order."""
    text = chapters.BLOCK.sub(lambda match: f"```python\n{match['code']}```", files.read_text(path))
    text = FOLD.sub(r"**\1.**", MARKS.sub("", text)).replace("</details>\n", "")
    text = CHAPTER.sub(r"](\1.ipynb", text)
    page = jupytext.reads(text, fmt="md")
    cells = (cell for cell in page.cells if cell.cell_type == "code")
    for cell, block in zip(cells, chapters.blocks(path), strict=True):
        if block.output:
            cell.outputs = [new_output("stream", name="stdout", text=block.output)]
    for number, cell in enumerate(page.cells):
        cell.id = f"cell-{number}"  # random otherwise
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    page.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    return page


def main(folder: str, out: str) -> None:
    """Write a notebook for every page in `folder` that has code, their pictures, and the modules that draw them."""
    pages = [path for path in sorted(Path(folder).glob("*.md")) if any(chapters.blocks(path))]
    if not pages:
        raise UserError(f"{folder}: holds no chapter; give docs/learn")
    for path in pages:
        files.write_text(Path(out) / f"{path.stem}.ipynb", jupytext.writes(notebook(path), fmt="ipynb"))
    shutil.copytree(Path(folder) / "img", Path(out) / "img", dirs_exist_ok=True)
    for name in ("pictures.py", "diagrams.py"):
        shutil.copyfile(Path(__file__).with_name(name), Path(out) / name)


if __name__ == "__main__":
    stage_main(lambda: main(*(sys.argv[1:] or ("docs/learn", "build/notebooks"))))
