"""People's ratings of responses: the texts to rate, and the file of the ratings.

A rating belongs to a text, not to a position in a file: after another training the ratings of unchanged responses are
still valid, and equal responses of two models are rated once. Raters do not see which model wrote a response.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2core import files
from gpt2core.errors import UserError, listed
from gpt2core.evaluation.judges.judge import Item

QUESTIONS = ("correctness", "helpfulness", "safety")
SCORES = (1, 2, 3, 4, 5)  # 5 is best
COLUMNS = ("rater", "item", *QUESTIONS, "instruction", "input", "response")
LONGEST_NAME = 60
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of a cell that spreadsheets run as a formula
_SUFFIX = "response"  # of the keys of responses: response, base_response, model 1 response

Scores = dict[str, int]  # by question, without questions that were not answered


@dataclass(frozen=True)
class Response(Item):
    """A text to rate, with its instruction."""

    @property
    def item(self) -> str:
        """The name of the text in the file of ratings: 16 hexadecimal digits of a hash."""
        texts = json.dumps([self.instruction, self.input, self.response])
        return hashlib.sha256(texts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Responses:
    """The responses of each model, by its key in the file, in the order of the entries."""

    by_model: Mapping[str, Sequence[Response]]

    def distinct(self) -> dict[str, Response]:
        """Return each text once, by its item."""
        return {response.item: response for responses in self.by_model.values() for response in responses}

    def in_order_for(self, rater: str, seed: int) -> list[str]:
        """Return all items, in an order that depends on the seed and the rater only."""
        items = sorted(self.distinct())
        random.Random(f"{seed}\n{rater}").shuffle(items)
        return items


def read_responses(path: str | os.PathLike[str], models: Sequence[str] = ()) -> Responses:
    """Read entries with instruction, input, output (the reference) and one or more responses.

    Args:
        path: a JSON list of objects, or a `.csv` with a header line. `input` and `output` are optional. Every key that
            ends with `response` is a model; `finetune-instruct` writes `response` and `base_response`.
        models: only these keys.

    Raises:
        UserError: names file, entry (rows of a CSV count from 1 after the header), and key.
    """
    path = Path(path)
    entries = [row for _, row in _rows(path)] if path.suffix.lower() == ".csv" else files.read_records(path)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: must be a list of entries with instruction, input, output and response")
    keys = [key for key in entries[0] if key.endswith(_SUFFIX)]
    if missing := [key for key in models if key not in keys]:
        raise UserError(f"{path}: has no {missing[0]!r}; its responses are {listed(keys)}")
    keys = list(models) or keys
    if not keys:
        raise UserError(f"{path}: no key ends with {_SUFFIX!r}; it has {listed(list(entries[0]))}")
    return Responses({key: [_response(path, n, entry, key) for n, entry in enumerate(entries, 1)] for key in keys})


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number (the header is row 1) and cells of each row of a CSV."""
    header, rows = files.read_csv(path)
    for number, cells in rows:
        yield number, dict(zip(header, cells, strict=True))


def _response(path: Path, number: int, entry: Mapping[str, Any], key: str) -> Response:
    where = f"{path}: entry {number}"
    for name in ("instruction", key):
        if not isinstance(entry.get(name), str):
            raise UserError(f"{where}: {name!r} must be a text, found {entry.get(name)!r:.60}")
    if not entry["instruction"].strip():
        raise UserError(f"{where}: 'instruction' is blank")
    for name in ("input", "output"):
        if not isinstance(entry.get(name, ""), str):
            raise UserError(f"{where}: {name!r} must be a text, found {entry[name]!r:.60}")
    return Response(entry["instruction"], entry.get("input", ""), entry.get("output", ""), entry[key])


class Ratings:
    """The file of all ratings, one row per rater and text. Processes may share it: each write reads it again.

    It is a CSV with the columns `COLUMNS`, created with the first rating. Rows of texts that are not among the
    responses are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, dict[str, Scores]]:
        """Return scores by rater and item. Raises UserError that names file, row, and column."""
        ratings: dict[str, dict[str, Scores]] = {}
        for row in self._read():
            scores = {question: int(row[question]) for question in QUESTIONS if row[question]}
            ratings.setdefault(row["rater"], {})[row["item"]] = scores
        return ratings

    def rate(self, rater: str, response: Response, question: str, score: int) -> None:
        """Keep one answer. It is on the disk when this returns."""
        assert question in QUESTIONS and score in SCORES
        with files.lock(self.path.with_name(f".{self.path.name}.lock")):
            rows = self._read()
            row = next((row for row in rows if (row["rater"], row["item"]) == (rater, response.item)), None)
            if row is None:
                row = dict.fromkeys(COLUMNS, "") | {
                    "rater": rater, "item": response.item,
                    "instruction": response.instruction, "input": response.input, "response": response.response,
                }  # fmt: skip
                rows.append(row)
            row[question] = str(score)
            quoted = [{column: _quoted(cell) for column, cell in row.items()} for row in rows]
            files.write_csv(self.path, COLUMNS, quoted)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        rows: list[dict[str, str]] = []
        seen: dict[tuple[str, str], int] = {}
        for number, cells in _rows(self.path):
            where = f"{self.path}, row {number}"
            row = {column: _unquoted(cell) for column, cell in cells.items()}
            if differ := set(row) ^ set(COLUMNS):
                raise UserError(f"{self.path}: its columns must be {', '.join(COLUMNS)}; look at {min(differ)!r}")
            for question in QUESTIONS:
                if row[question] not in ("", *map(str, SCORES)):
                    raise UserError(
                        f"{where}: {question} must be {SCORES[0]} to {SCORES[-1]} or empty, found {row[question]!r:.40}"
                    )
            if first := seen.get(who := (row["rater"], row["item"])):
                raise UserError(f"{where}: {row['rater']} has rated this text in row {first}; keep one of the two")
            seen[who] = number
            rows.append(row)
        return rows


def _quoted(cell: str) -> str:
    r"""Return a cell that no spreadsheet runs as a formula: one that starts like a formula gets an apostrophe.

    >>> _quoted("=1+1"), _quoted("a = b"), _unquoted(_quoted("'=1"))
    ("'=1+1", 'a = b', "'=1")
    """
    return f"'{cell}" if cell.lstrip("'").startswith(FORMULA) else cell


def _unquoted(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def checked_name(rater: str) -> str:
    """Return a rater's name without surrounding white space.

    Raises:
        UserError: the name is empty, too long, or has control characters.
    """
    name = unicodedata.normalize("NFC", rater.strip())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UserError(f"a rater's name has 1 to {LONGEST_NAME} characters, and no line ends: {rater!r:.80}")
    return name
