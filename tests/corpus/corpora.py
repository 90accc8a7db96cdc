"""Corpora for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpt2core.corpus.documents import Piece

BOOK = "".join(f"Chapter {i}.\n\nIt was the {i}th day,  and nobody's lantern burned.\n" for i in range(400))


def folder_with(tmp_path: Path, **texts: str) -> Path:
    """A corpus: `train/` with a .txt file for each text."""
    (tmp_path / "train").mkdir(parents=True)
    for name, text in texts.items():
        (tmp_path / "train" / f"{name}.txt").write_text(text)
    return tmp_path


def joined(pieces: Iterable[Piece]) -> list[str]:
    """The documents that pieces make up."""
    out, open_document = [], ""
    for text, ends in pieces:
        open_document += text
        if ends:
            out.append(open_document)
            open_document = ""
    return out + ([open_document] if open_document else [])
