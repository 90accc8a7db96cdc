"""Text in, a stream of pieces out: documents of any length, in constant memory, split into training and validation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import regex

from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT

BLOCK_CHARS = 1 << 20  # a longer document comes in several pieces of about this length
FEW_DOCUMENTS = 20  # below this, the end of each document is held out; else whole documents

# Between a word and the single space or newline before the next one no tokenizer of GPT-2's pattern has a token across.
SAFE_CUT = regex.compile(r"(?<=\S)(?=[ \n]\S)")
SEPARATOR = regex.compile(r"\n?" + regex.escape(END_OF_TEXT))


class Piece(NamedTuple):
    """Some text of one document, and whether the document ends with it."""

    text: str
    ends_document: bool


def read_pieces(folder: Path) -> Iterator[Piece]:
    """The documents of all .txt files of a folder, in the order of their names.

    `<|endoftext|>` separates documents within a file, without a line end on either side; each file ends one.

    Raises:
        UserError: no file, or a file that is not UTF-8.
    """
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise UserError(f"{folder}: no .txt file; run the stage download-data first: dvc repro download-data")
    for path in paths:
        yield from _read_file(path)


def _read_file(path: Path) -> Iterator[Piece]:
    buffer = ""
    begun = False  # whether a piece of the current document is out already
    after_separator = False

    def piece(text: str, ends_document: bool) -> Iterator[Piece]:
        nonlocal begun, after_separator
        if not begun and after_separator:
            text = text.removeprefix("\n")
        if text.strip() or begun:  # documents of white space alone are none
            begun = not ends_document
            yield Piece(text, ends_document)
        after_separator = after_separator or ends_document

    try:
        with path.open(encoding="utf-8") as file:  # line ends become \n
            while block := file.read(BLOCK_CHARS):
                *documents, buffer = SEPARATOR.split(buffer + block)
                for document in documents:
                    yield from piece(document, True)
                if len(buffer) > BLOCK_CHARS and (cut := _last_safe_cut(buffer)):
                    yield from piece(buffer[:cut], False)
                    buffer = buffer[cut:]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert it: iconv -f latin1 -t utf-8") from None
    yield from piece(buffer, True)


def _last_safe_cut(text: str, window: int = 4096) -> int:
    """The last place to cut that leaves a separator's length behind it (one may be half-read); 0 if there is none."""
    end = len(text) - len(END_OF_TEXT) - 2
    return max((match.start() for match in SAFE_CUT.finditer(text, end - window, end)), default=0)


class Corpus:
    """A folder `train/` of texts, with a folder `val/` beside it where the source names held-out texts itself.

    Without one, validation is a random `val_fraction` of the documents, or, of fewer than 20, the end of each.
    """

    def __init__(self, folder: Path, val_fraction: float, seed: int):
        self.folder, self.val_fraction, self.seed = folder, val_fraction, seed
        self.has_val = (folder / "val").is_dir()
        self.lengths: list[int] = []  # characters of each document
        length = 0
        for piece in read_pieces(folder / "train"):
            length += len(piece.text)
            if piece.ends_document:
                self.lengths.append(length)
                length = 0
        if not self.lengths:
            raise UserError(f"{folder / 'train'}: the corpus is empty; it needs text")

    def pieces(self, split: str) -> Iterator[Piece]:
        """The pieces of split `train` or `val`."""
        if self.has_val:
            yield from read_pieces(self.folder / split)
        elif len(self.lengths) < FEW_DOCUMENTS:
            yield from self._parts(split)
        else:
            yield from self._documents(split)

    def _documents(self, split: str) -> Iterator[Piece]:
        """Whole documents: a seeded draw of exactly `val_fraction` of them is held out."""
        count = max(1, round(self.val_fraction * len(self.lengths)))
        held_out = set(random.Random(self.seed).sample(range(len(self.lengths)), count))
        index = 0
        for piece in read_pieces(self.folder / "train"):
            if (index in held_out) == (split == "val"):
                yield piece
            index += piece.ends_document

    def _parts(self, split: str) -> Iterator[Piece]:
        """Each document's first part for training and the rest for validation, cut between two words."""
        index = position = 0
        in_val = False
        for piece in read_pieces(self.folder / "train"):
            start = round(self.lengths[index] * (1 - self.val_fraction)) - position
            cut = SAFE_CUT.search(piece.text, start) if not in_val and start < len(piece.text) else None
            if cut:
                in_val = True
                yield (
                    Piece(piece.text[: cut.start()], True)
                    if split == "train"
                    else (Piece(piece.text[cut.start() :], piece.ends_document))
                )
            elif in_val == (split == "val"):
                yield piece
            position += len(piece.text)
            if piece.ends_document:
                index, position, in_val = index + 1, 0, False
