"""Labeled texts of any number of classes: read, check, split.

The first were the messages of the SMS Spam Collection (Almeida, Hidalgo and Yamakami 2011).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt2core import files
from gpt2core.errors import UserError, listed

# Columns to use if the params name none; the first of each is preferred to the others.
LABEL_COLUMNS = ("label", "class", "category", "target")
TEXT_COLUMNS = ("text", "message", "sentence", "content")
SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet", ".txt", "")
MAX_LABEL_CHARS = 1000
MIN_TEXTS = 3  # per class: one each for training, validation and test

Row = tuple[int, Any, Any]  # its number, label, text
Columns = tuple[str | None, str | None]  # names of the columns with labels and texts, where the params name them


class Message(NamedTuple):
    label: str
    text: str


class Splits(NamedTuple):
    train: list[Message]
    val: list[Message]
    test: list[Message]


def classes(messages: Iterable[Message]) -> tuple[str, ...]:
    """Return the distinct labels in order: by number if all are whole numbers, else by the alphabet.

    >>> classes([Message("10", "a"), Message("9", "b")]), classes([Message("spam", "a"), Message("ham", "b")])
    (('9', '10'), ('ham', 'spam'))
    """
    names = {message.label for message in messages}
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def read_table(
    path: str | os.PathLike[str], label_column: str | None = None, text_column: str | None = None
) -> list[Message]:
    """Read labeled texts; the classes are the distinct labels.

    `.csv` is read with its quoting and needs a header line; `.jsonl` has one object per line; `.parquet` has columns,
    and the names of numbered classes if the `datasets` library wrote them. Other files have one `label<TAB>text` per
    line without quoting (a quotation mark is a character of the text), and perhaps a header line that names columns.

    Args:
        path: the file.
        label_column: the column or key of the labels; None: one in `LABEL_COLUMNS`.
        text_column: the column or key of the texts; None: one in `TEXT_COLUMNS`.

    Raises:
        UserError: names file and row: empty file, not UTF-8, damaged, missing or ambiguous column, empty label or text,
            two labels that differ by capitals or Unicode forms alone, or a single class.
    """
    columns = (label_column, text_column)
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        rows = _parquet_rows(path, columns)
    else:
        table = files.read_text(path)
        if not table.strip():
            raise UserError(f"{path}: the file is empty; it needs rows of label and text")
        read = {".csv": _csv_rows, ".jsonl": _jsonl_rows}.get(suffix, _tsv_rows)
        rows = read(path, table, columns)
    messages: list[Message] = []
    first_rows: dict[str, tuple[int, str]] = {}  # by the label in small letters
    for row, label, text in rows:
        where = f"{path}, row {row:,}"
        messages.append(_checked(where, label, text))
        name = messages[-1].label
        same = unicodedata.normalize("NFC", name).casefold()
        first_row, first = first_rows.setdefault(same, (row, name))
        if name != first:
            differs = "capitals" if name.casefold() == first.casefold() else "how Unicode composes its characters"
            raise UserError(f"{where}: label {name!a} is {first!a} of row {first_row:,} but for {differs}; write one")
    if len(first_rows) < 2:
        rows_have = f"every row is labeled {messages[0].label!r}" if messages else "there is no row"
        raise UserError(f"{path}: {rows_have}; texts of two classes at least are needed")
    return messages


def _tsv_rows(path: str | os.PathLike[str], table: str, columns: Columns) -> Iterator[Row]:
    lines = files.numbered_lines(table)
    row, line = next(lines)
    header = [name.strip() for name in line.split("\t")]
    if any(columns) or all(any(_is(name, known) for name in header) for known in (LABEL_COLUMNS, TEXT_COLUMNS)):
        label, text = (header.index(name) for name in _columns(f"{path}, row {row}", header, columns))
    else:
        header, label, text = ["label", "text"], 0, 1
        lines = itertools.chain([(row, line)], lines)
    for row, line in lines:
        cells = line.split("\t", len(header) - 1)  # what is left, tabs too, is the last column's
        if len(cells) == 1:
            raise UserError(f"{path}, row {row:,}: {line[:40]!r} has no tab; a row is a label, a tab and the text")
        n_cells = len(cells) if text == len(header) - 1 else line.count("\t") + 1  # only a text may hold tabs
        if n_cells != len(header):
            raise UserError(f"{path}, row {row:,}: {n_cells} column(s), the header has {len(header)}")
        yield row, cells[label], cells[text]


def _csv_rows(path: str | os.PathLike[str], table: str, columns: Columns) -> Iterator[Row]:
    header, rows = files.read_csv(path, table)
    label, text = (header.index(name) for name in _columns(f"{path}, row 1", header, columns))
    for row, cells in rows:
        yield row, cells[label], cells[text]


def _jsonl_rows(path: str | os.PathLike[str], table: str, columns: Columns) -> Iterator[Row]:
    names: tuple[str, str] | None = None
    for row, line in files.numbered_lines(table):
        where = f"{path}, row {row:,}"
        value = files.parse_json(line, where)
        if not isinstance(value, dict):
            raise UserError(f'{where}: must be an object such as {{"label": …, "text": …}}, found {line[:60]}')
        names = names or _columns(where, list(value), columns)
        if missing := [name for name in names if name not in value]:
            raise UserError(f"{where}: has no {' and no '.join(missing)}; it has {listed(list(value))}")
        yield row, value[names[0]], value[names[1]]


def _parquet_rows(path: str | os.PathLike[str], columns: Columns) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        files.open_regular(path).close()  # pyarrow waits for a pipe forever
        file = pyarrow.parquet.ParquetFile(path)
        label, text = _columns(str(path), file.schema_arrow.names, columns)
        names = _class_names(file.schema_arrow.metadata or {}, label)
        row = 0
        for batch in file.iter_batches(columns=[label, text], use_threads=False):
            for number, content in zip(batch[label].to_pylist(), batch[text].to_pylist(), strict=True):
                row += 1
                if names and not (isinstance(number, int) and 0 <= number < len(names)):
                    raise UserError(f"{path}, row {row:,}: label {number!r} is none of 0 to {len(names) - 1}")
                yield row, names[number] if names else number, content
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a text in it is not UTF-8 ({error.reason}); write the file again") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: damaged or no Parquet file ({error})") from None


def _class_names(metadata: Mapping[bytes, bytes], column: str) -> list[str]:
    """Return the names of numbered classes as the `datasets` library writes them, or an empty list."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        return [str(name) for name in feature.get("names", [])]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _columns(where: str, names: Sequence[str], columns: Columns) -> tuple[str, str]:
    """Return the names of the columns with labels and texts."""
    chosen, problems, keys = [], [], []
    for column, known, key in zip(
        columns,
        (LABEL_COLUMNS, TEXT_COLUMNS),
        ("data.classification_label_column", "data.classification_text_column"),
        strict=True,
    ):
        if column is not None:
            fitting = [name for name in names if name == column]
            problem = f"no column {column!r}"
        else:
            fitting = [name for name in names if _is(name, known[:1])] or [name for name in names if _is(name, known)]
            problem = f"no column {known[0]} (or {', '.join(known[1:])})"
        if len(fitting) > 1:
            problem = f"columns {' and '.join(fitting)} may both be the {known[0]}"
        if len(fitting) != 1:
            problems.append(problem)
            keys.append(key)
        chosen += fitting[:1]
    if problems:
        remedy = f"name it by {' and '.join(keys)} in params.yaml"
        if len(names) == 1 and any(separator in names[0] for separator in ";,\t|"):
            remedy = "separate the cells by commas in a .csv file, by tabs in a .tsv file"
        raise UserError(f"{where}: {' and '.join(problems)}; there are: {listed(names)}; {remedy}")
    if chosen[0] == chosen[1]:
        raise UserError(f"{where}: column {chosen[0]!r} cannot be both the label and the text")
    return chosen[0], chosen[1]


def _is(name: str, known: Sequence[str]) -> bool:
    return name.strip().lower() in known


def _checked(where: str, label: object, text: object) -> Message:
    if not isinstance(label, str | int):
        raise UserError(f"{where}: the label must be a text or a whole number, found {label!r:.40}")
    label = str(label).strip()
    if not label:
        raise UserError(f"{where}: the label is empty; a row is a label and a text")
    if len(label) > MAX_LABEL_CHARS:
        raise UserError(
            f"{where}: the label has {len(label):,} characters, at most {MAX_LABEL_CHARS:,} are allowed; "
            "are label and text exchanged?"
        )
    if not isinstance(text, str):
        raise UserError(f"{where}: the text must be a text, found {text!r:.40}")
    if not text.strip():
        raise UserError(f"{where}: the text is empty; a row is a label and a text")
    try:
        f"{label}{text}".encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: half of a surrogate pair, which no text has; fix or remove this row") from None
    return Message(label, text)


def write_jsonl(path: str | os.PathLike[str], messages: Iterable[Message]) -> None:
    """Write one `{"label", "text"}` per line, atomically; `read_table` reads it."""
    files.write_text(path, "".join(json.dumps(m._asdict(), ensure_ascii=False) + "\n" for m in messages))


def split(
    messages: Sequence[Message],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    *,
    balance: bool = True,
    drop_duplicates: bool = True,
) -> Splits:
    """Split into training, validation, and test; each has its fraction of every class, and at least one text of it.

    A text that occurs several times is in one split only, or the test set would leak into training. The splits depend
    on the seed alone.

    Args:
        messages: texts of two or more classes.
        val_fraction: fraction of the distinct texts of each class.
        test_fraction: fraction of the distinct texts of each class.
        seed: random seed of the draw.
        balance: whether to sample the more frequent classes down to the least frequent one.
        drop_duplicates: whether to drop repeats of a text; the first one's label counts.

    Raises:
        UserError: a class has fewer than `MIN_TEXTS` different texts.
    """
    rng = random.Random(f"sms-spam {seed}")
    groups: dict[str, list[Message]] = {}
    for message in messages:
        groups.setdefault(message.text, []).append(message)
    by_class: dict[str, list[list[Message]]] = {label: [] for label in classes(messages)}
    for group in groups.values():
        by_class[group[0].label].append(group[:1] if drop_duplicates else group)
    if small := sorted((len(texts), label) for label, texts in by_class.items() if len(texts) < MIN_TEXTS):
        raise UserError(
            f"too few messages to split: class {listed([f'{label!r} has {n}' for n, label in small])}, without "
            f"repeats; each of the {len(by_class):,} classes needs {MIN_TEXTS}, for training, "
            "validation and test; add some, or rename or remove the class, or name another column by "
            "data.classification_label_column"
        )
    least = min(map(len, by_class.values()))
    splits = Splits([], [], [])
    for texts in by_class.values():
        n = least if balance else len(texts)
        n_test, n_val = max(1, round(n * test_fraction)), max(1, round(n * val_fraction))
        drawn = rng.sample(texts, n)
        cuts = (drawn[n_test + n_val :], drawn[n_test : n_test + n_val], drawn[:n_test])
        for part, groups_of_part in zip(splits, cuts, strict=True):
            part.extend(message for group in groups_of_part for message in group)
    for part in splits:
        rng.shuffle(part)
    return splits
