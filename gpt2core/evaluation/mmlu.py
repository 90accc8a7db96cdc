"""MMLU as its authors distribute it (Hendrycks et al. 2021): one CSV file per subject and split, without a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2core import files
from gpt2core.errors import UserError

LETTERS = "ABCD"


def read_mmlu(folder: Path, *, needs_dev: bool = False) -> dict[str, Mapping[str, list[dict[str, Any]]]]:
    """Read `test/SUBJECT_test.csv` and, if they exist, `dev/SUBJECT_dev.csv`: a question, four choices, and a letter.

    They are in the folder `data/` of the authors' archive. With `needs_dev`, each subject must have solved examples.

    Returns:
        By subject and split, rows of question, choices, and answer (0 to 3).

    Raises:
        UserError: a row is wrong (names file and row), or there is no subject.
    """
    tests = sorted((folder / "test").glob("*_test.csv"))
    if not tests:
        raise UserError(f"{folder}: has no test/SUBJECT_test.csv; MMLU's own archive has them in its folder data")
    subjects: dict[str, Mapping[str, list[dict[str, Any]]]] = {}
    for path in tests:
        subject = path.name.removesuffix("_test.csv")
        splits = {"test": _read(path)}
        dev = folder / "dev" / f"{subject}_dev.csv"
        if dev.exists():
            splits["dev"] = _read(dev)
        elif needs_dev:
            raise UserError(f"{dev}: no such file; solved examples are taken from there (or --num-fewshot 0)")
        subjects[subject] = splits
    return subjects


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        cells_of_rows = list(csv.reader(io.StringIO(files.read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: no CSV: {error}") from None
    for number, cells in enumerate(cells_of_rows, start=1):
        if len(cells) != len(LETTERS) + 2 or cells[-1].strip() not in tuple(LETTERS):
            raise UserError(
                f"{path}, row {number}: must be a question, four choices and a letter A to D, found {cells!r:.80}"
            )
        rows.append({"question": cells[0], "choices": cells[1:-1], "answer": LETTERS.index(cells[-1].strip())})
    if not rows:
        raise UserError(f"{path}: is empty")
    return rows
