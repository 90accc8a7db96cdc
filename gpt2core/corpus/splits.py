"""A folder of documents, counted, without duplicates, and split into training and validation.

No document is held in memory: a part of the corpus is described by how many characters of each of its documents belong
to training (its shares), and its reader cuts it accordingly.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2core.corpus import documents, remote
from gpt2core.corpus.documents import SAFE_CUT, Part, Piece
from gpt2core.errors import UserError
from gpt2core.executor import Executor, LocalProcesses

MAX_WORD_CHARS = 200
FEW_DOCUMENTS = 20  # below this, the end of each document is held out; else whole documents

# A share is the number of a document's characters for training, or one of these.
ALL_TRAIN, ALL_VAL, DROPPED = np.iinfo(np.int64).max, -1, -2


Work = Sequence[tuple[Part, Sequence[int]]]  # the parts that a process reads one after the other, with their shares


class PartCount(NamedTuple):
    """The documents of a part. The first may have started, and the last may end, in another part."""

    chars: np.ndarray  # of each document: [documents] int64
    hashes: np.ndarray  # of each document: [documents] uint64; empty without duplicates to drop


def count(parts: Sequence[Part], with_hashes: bool) -> list[tuple[list[int], list[int]]]:
    """Return the two columns of `PartCount` for each part: count the characters of each document, and hash them."""
    return [_count(Part(*part), with_hashes) for part in parts]


def _count(part: Part, with_hashes: bool) -> tuple[list[int], list[int]]:
    chars, hashes = [0], [blake2b(digest_size=8)]
    for text, ends_document in documents.read(part):
        chars[-1] += len(text)
        if with_hashes:
            hashes[-1].update(text.encode())
        if ends_document:
            chars.append(0)
            hashes.append(blake2b(digest_size=8))
    n_documents = len(chars) - (not part.is_open)
    digests = b"".join(digest.digest() for digest in hashes[:n_documents]) if with_hashes else b""
    return chars[:n_documents], np.frombuffer(digests, np.uint64).tolist()


def split_pieces(work: Work) -> Iterator[tuple[str, Piece]]:
    """Yield the pieces of some parts with `train` or `val`; a document in both is cut between two words."""
    for part, shares in work:
        yield from _split_part(Part(*part), shares)


def _split_part(part: Part, shares: Sequence[int]) -> Iterator[tuple[str, Piece]]:
    index = position = 0
    is_cut = False
    for piece in documents.read(part):
        share, n_chars = shares[index], len(piece.text)
        if share >= position + n_chars:
            yield "train", piece
        elif share == ALL_VAL or is_cut:
            yield "val", piece
        elif share != DROPPED:
            cut = _cut_at(piece.text, share - position)
            yield "train", Piece(piece.text[:cut], True)
            if cut < n_chars:
                yield "val", Piece(piece.text[cut:], piece.ends_document)
            is_cut = True
        position += n_chars
        if piece.ends_document:
            index, position, is_cut = index + 1, 0, False


def _cut_at(text: str, place: int) -> int:
    """Return where to cut a document between training and validation: between two words, at or after `place`.

    Chinese, or DNA, has no spaces between words: without one in MAX_WORD_CHARS, the cut is between two characters.
    """
    if match := SAFE_CUT.search(text, place, place + MAX_WORD_CHARS):
        return match.start()
    if len(text) - place <= MAX_WORD_CHARS:
        return len(text)
    while unicodedata.combining(text[place]) or text[place - 1 : place + 1] == "\r\n":
        place += 1
    return place


class Corpus:
    """A folder `train/` of documents, and `val/` if the source has held-out texts.

    Without one, validation is a random `val_fraction` of the documents, or of fewer than 20 the end of each.

    Args:
        folder: contains `train/` and perhaps `val/`.
        val_fraction: share of the documents, or of each one's characters.
        seed: decides which documents are held out.
        drop_duplicates: keep only the first of documents with the same bytes; one that is held out by name counts as
            first. They are compared by hashes of 64 bits: of ten million documents, one is lost by mistake with a
            probability of 3 in a million.
        executor: counts.

    Raises:
        UserError: no files, no text in them, or bad content.
    """

    def __init__(
        self,
        folder: Path,
        val_fraction: float,
        seed: int,
        drop_duplicates: bool = False,
        executor: Executor | None = None,
    ):
        self.val_fraction = val_fraction
        self.has_val = (folder / "val").is_dir()
        splits = ("val", "train") if self.has_val else ("train",)
        planned = [(part, split == "val") for split in splits for part in _plan(folder / split)]
        self.parts = [part for part, _ in planned]
        self._is_val = np.array([is_val for _, is_val in planned], bool)
        self._groups = list(_grouped(self.parts))
        tasks = ((self.parts[group.start : group.stop], drop_duplicates) for group in self._groups)
        columns = chain.from_iterable((executor or LocalProcesses()).map(count, tasks))
        counts = [PartCount(np.array(chars, np.int64), np.array(hashes, np.uint64)) for chars, hashes in columns]

        # Document numbers: a part's first document may be the last one of the part before.
        self._n_in_part = [len(c.chars) for c in counts]
        n_started = [n - part.continues for part, n in zip(self.parts, self._n_in_part, strict=True)]
        self._first = np.cumsum([0, *n_started]) - [*(part.continues for part in self.parts), 0]
        self.n_documents = sum(n_started)
        self.n_chars = sum(int(c.chars.sum()) for c in counts)
        self._dropped = self._find_duplicates(counts) if drop_duplicates else np.zeros(self.n_documents, bool)
        n_remaining = int(self.n_documents - self._dropped.sum())
        if not n_remaining:
            raise UserError(f"{folder / 'train'}: the corpus is empty; it needs text")

        self._is_few = not self.has_val and n_remaining < FEW_DOCUMENTS
        self._held_out = np.zeros(self.n_documents, bool)
        if self._is_few:
            self._chars, self._chars_before = self._add_up(counts)
        elif not self.has_val:  # a seeded draw of exactly val_fraction of the documents
            drawn = random.Random(seed).sample(range(n_remaining), max(1, round(val_fraction * n_remaining)))
            self._held_out[np.flatnonzero(~self._dropped)[drawn]] = True

    @property
    def n_dropped(self) -> int:
        """The number of documents that were dropped as duplicates."""
        return int(self._dropped.sum())

    @property
    def n_tasks(self) -> int:
        """The number of tasks."""
        return len(self._groups)

    def tasks(self) -> Iterator[Work]:
        """Yield the parts in order, small ones together."""
        for group in self._groups:
            yield [(self.parts[number], self._shares(number)) for number in group]

    def _shares(self, number: int) -> list[int]:
        """Return the characters for training per document of part `number`, or ALL_TRAIN, ALL_VAL, DROPPED."""
        here = slice(self._first[number], self._first[number] + self._n_in_part[number])
        if self._is_few:
            shares = np.rint(self._chars[here] * (1 - self.val_fraction)).astype(np.int64)
            shares[:1] -= self._chars_before[number]
            shares = np.maximum(shares, ALL_VAL)
        else:
            shares = np.where(self._held_out[here] | self._is_val[number], ALL_VAL, ALL_TRAIN)
        shares[self._dropped[here]] = DROPPED
        return shares.tolist()

    def _add_up(self, counts: list[PartCount]) -> tuple[np.ndarray, list[int]]:
        """Add up the characters of each document, and per part those of its first document that come before it."""
        chars, before = np.zeros(self.n_documents, np.int64), []
        for part, first, c in zip(self.parts, self._first, counts, strict=False):
            before.append(int(chars[first]) if part.continues else 0)
            chars[first : first + len(c.chars)] += c.chars
        return chars, before

    def _find_duplicates(self, counts: list[PartCount]) -> np.ndarray:
        """Return which documents have the bytes of an earlier one: [n_documents] bool."""
        hashes = np.zeros(self.n_documents, np.uint64)
        for part, first, c in zip(self.parts, self._first, counts, strict=False):
            if part.continues:  # the document continues: hash its two hashes
                both = hashes[first].tobytes() + c.hashes[0].tobytes()
                hashes[first] = np.frombuffer(blake2b(both, digest_size=8).digest(), np.uint64)[0]
            hashes[first + part.continues : first + len(c.hashes)] = c.hashes[part.continues :]
        is_repeated = np.ones(self.n_documents, bool)
        is_repeated[np.unique(hashes, return_index=True)[1]] = False
        return is_repeated

    def pieces(self, split: str) -> Iterator[Piece]:
        """Yield the pieces of split `train` or `val`."""
        yield from (piece for work in self.tasks() for name, piece in split_pieces(work) if name == split)


def _grouped(parts: Sequence[Part]) -> Iterator[range]:
    """Yield the numbers of parts that are read together: of small files as many as have the bytes of one part."""
    start = n_bytes = 0
    for number, part in enumerate(parts):
        if number > start and n_bytes + documents.text_bytes(part) > documents.PART_BYTES:
            yield range(start, number)
            start, n_bytes = number, 0
        n_bytes += documents.text_bytes(part)
    yield range(start, len(parts))


def _plan(folder: Path) -> list[Part]:
    """Return the parts of all files of documents in a folder, and of those that it lists."""
    paths = documents.find_documents(folder) if folder.is_dir() else []
    remote_files = remote.listed(folder)
    if not paths and not remote_files:
        raise UserError(
            f"{folder}: no {documents.ALLOWED} file in this folder; "
            "run the stage download-data first: dvc repro download-data"
        )
    local = [part for path in paths for part in documents.plan(path)]
    return local + [part for file in remote_files for part in documents.plan_remote(file)]
