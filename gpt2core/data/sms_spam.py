"""Labelled short messages: read, check, split (Almeida, Hidalgo and Yamakami 2011, SMS Spam Collection)."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gpt2core import files
from gpt2core.errors import UserError

LABELS = ("ham", "spam")  # a label's id is its index


class Message(NamedTuple):
    label: str
    text: str


class Splits(NamedTuple):
    train: list[Message]
    val: list[Message]
    test: list[Message]


def read_table(path: str | os.PathLike[str]) -> list[Message]:
    """Read messages from a table of the columns label and text.

    `.csv` is read with its quoting and needs a header line; anything else is one `label<TAB>text` a line without
    quoting (a quotation mark is a character of the message), and a header line `label<TAB>text` may be there.

    Raises:
        UserError: names file and row: empty file, not UTF-8, missing column, unknown label, empty text, or a label
            that no row has.
    """
    table = files.read_text(path).removeprefix("\ufeff")
    if not table.strip():
        raise UserError(f"{path}: the file is empty; it needs rows of label ({' or '.join(LABELS)}) and text")
    rows = _csv_rows(path, table) if Path(path).suffix.lower() == ".csv" else _tsv_rows(path, table)
    messages = [_checked(f"{path}, row {row}", label, text) for row, label, text in rows]
    for label in LABELS:
        if not any(message.label == label for message in messages):
            raise UserError(f"{path}: no row is labelled {label!r}; messages of both labels are needed")
    return messages


def _tsv_rows(path: str | os.PathLike[str], table: str) -> Iterator[tuple[int, str, str]]:
    # Only \n and \r\n end a line: str.splitlines would also cut a message at U+0085 or U+2028.
    for row, line in enumerate(table.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip() or (row == 1 and line.strip().lower() == "label\ttext"):
            continue
        label, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{path}, row {row}: {line[:40]!r} has no tab; a row is a label, a tab and the text")
        yield row, label, text


def _csv_rows(path: str | os.PathLike[str], table: str) -> Iterator[tuple[int, str, str]]:
    reader = csv.reader(io.StringIO(table, newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader)]
        if missing := [name for name in ("label", "text") if name not in header]:
            raise UserError(
                f"{path}, row 1: no column {' and no column '.join(missing)}; the header line has "
                f"{', '.join(header)} and needs label,text"
            )
        label, text = header.index("label"), header.index("text")
        for fields in reader:
            if not fields:
                continue
            if len(fields) <= max(label, text):
                raise UserError(f"{path}, row {reader.line_num}: {len(fields)} column(s), the header has {len(header)}")
            yield reader.line_num, fields[label], fields[text]
    except csv.Error as error:
        raise UserError(f"{path}, row {reader.line_num}: not CSV: {error}; is a quotation mark left open?") from None


def _checked(where: str, label: object, text: object) -> Message:
    if label not in LABELS:
        raise UserError(f"{where}: unknown label {label!r}; allowed: {', '.join(LABELS)}")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: the text is empty; a row is a label and a text")
    return Message(str(label), text)


def write_jsonl(path: str | os.PathLike[str], messages: Iterable[Message]) -> None:
    """Write one `{"label", "text"}` a line, atomically."""
    files.write_text(path, "".join(json.dumps(m._asdict(), ensure_ascii=False) + "\n" for m in messages))


def read_jsonl(path: str | os.PathLike[str]) -> list[Message]:
    """Read what `write_jsonl` wrote. Raises UserError that names file and row."""
    messages = []
    for row, line in enumerate(files.read_text(path).split("\n"), start=1):
        if not line:
            continue
        where = f"{path}, row {row}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON: {error.msg}") from None
        if not isinstance(value, dict) or not {"label", "text"} <= value.keys():
            raise UserError(f'{where}: must be {{"label": …, "text": …}}, found {line[:60]}')
        messages.append(_checked(where, value["label"], value["text"]))
    if not messages:
        raise UserError(f"{path}: the file is empty; run the stage download-data first: dvc repro download-data")
    return messages


def split(messages: Sequence[Message], val_fraction: float, test_fraction: float, seed: int) -> Splits:
    """Split into training, validation and test, with as many messages of either label in each.

    Repeats of a text are removed before anything else, or the test set would leak into training. Then the more
    frequent label is sampled down to the other, and each split takes its share of both. The same seed gives the same
    splits.

    Raises:
        UserError: too few messages to put one of each label into each split.
    """
    rng = random.Random(f"sms-spam {seed}")
    unique: dict[str, Message] = {}
    for message in messages:
        unique.setdefault(message.text, message)
    counts = Counter(message.label for message in unique.values())
    n = min(counts[label] for label in LABELS)
    n_test, n_val = round(n * test_fraction), round(n * val_fraction)
    if min(n_test, n_val, n - n_test - n_val) < 1:
        raise UserError(
            f"too few messages to split: {', '.join(f'{counts[label]} {label}' for label in LABELS)} without repeats, "
            f"and validation ({val_fraction:g}), test ({test_fraction:g}) and training each need at least one of both; "
            "add messages or raise the fractions"
        )
    splits = Splits([], [], [])
    for label in LABELS:
        drawn = rng.sample([message for message in unique.values() if message.label == label], n)
        splits.test.extend(drawn[:n_test])
        splits.val.extend(drawn[n_test : n_test + n_val])
        splits.train.extend(drawn[n_test + n_val :])
    for part in splits:
        rng.shuffle(part)
    return splits
