"""Instructions with their responses, in Alpaca's form (Taori et al. 2023): read, check, split."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

from gpt2core import files
from gpt2core.errors import UserError, listed


class Entry(TypedDict):
    instruction: str
    input: str  # "" where the instruction needs none
    output: str


class Splits(NamedTuple):
    train: list[Entry]
    val: list[Entry]
    test: list[Entry]


def read(path: str | os.PathLike[str]) -> list[Entry]:
    """Read a JSON list, or JSON lines, of objects with instruction, input (optional), and output.

    Other keys are dropped.

    Raises:
        UserError: names file, entry (counted from 1) and key: not a list, empty, a key missing, empty or not a text.
    """
    entries = files.read_records(path)
    if not isinstance(entries, list):
        kind = "an object" if isinstance(entries, dict) else type(entries).__name__
        raise UserError(f'{path}: must be a list of entries, found {kind}; write [{{"instruction": …}}, …]')
    if not entries:
        raise UserError(f"{path}: the list is empty; it needs entries with instruction, input and output")
    return [_checked(f"{path}, entry {number}", entry) for number, entry in enumerate(entries, start=1)]


def _checked(where: str, entry: Any) -> Entry:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must be an object with instruction, input and output, found {type(entry).__name__}")
    return Entry(
        instruction=_text(where, entry, "instruction"),
        input=_text(where, {"input": "", **entry}, "input", may_be_empty=True),
        output=_text(where, entry, "output"),
    )


def _text(where: str, entry: dict[str, Any], key: str, may_be_empty: bool = False) -> str:
    if key not in entry:
        raise UserError(f"{where}: the key {key!r} is missing; it has {listed(list(entry))}")
    value = entry[key]
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} must be a text, found {value!r:.40}")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{where}: {key} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {key} has half of a surrogate pair at character {error.start + 1}") from None
    return value


def split(entries: Sequence[Entry], val_fraction: float, test_fraction: float, seed: int) -> Splits:
    """Split into training, validation, and test, so that no input of one split occurs in another.

    Entries that share an input (or, without one, their instruction) go into the same split: otherwise a model could
    learn the output of a test entry by heart.

    Raises:
        UserError: too few entries to put at least one into each split.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["input"] or entry["instruction"]).strip(), []).append(entry)
    shuffled = list(groups.values())
    random.Random(f"instructions {seed}").shuffle(shuffled)
    n_test, n_val = round(len(entries) * test_fraction), round(len(entries) * val_fraction)
    splits = Splits([], [], [])
    for group in shuffled:
        if len(splits.test) + len(group) <= n_test:
            splits.test.extend(group)
        elif len(splits.val) + len(group) <= n_val:
            splits.val.extend(group)
        else:
            splits.train.extend(group)
    return _complete(splits, len(entries), len(groups), val_fraction, test_fraction)


def split_in_order(entries: Sequence[Entry], val_fraction: float, test_fraction: float) -> Splits:
    """Split into training, then test, then validation, in the order of the entries, as LLMs-from-scratch does.

    An input of one split may occur in another. Raises UserError as `split`.
    """
    n_test = int(len(entries) * test_fraction)
    n_train = int(len(entries) * (1 - val_fraction - test_fraction))
    train, test, val = entries[:n_train], entries[n_train : n_train + n_test], entries[n_train + n_test :]
    return _complete(
        Splits(list(train), list(val), list(test)), len(entries), len(entries), val_fraction, test_fraction
    )


def _complete(splits: Splits, n_entries: int, n_inputs: int, val_fraction: float, test_fraction: float) -> Splits:
    """Return the splits. Raises UserError if one is empty."""
    if not all(splits):
        raise UserError(
            f"too few instructions to split: {n_entries} entries with {n_inputs} different inputs, and "
            f"validation ({val_fraction:g}), test ({test_fraction:g}) and training each need at least one; "
            "add entries or raise the fractions"
        )
    return splits
