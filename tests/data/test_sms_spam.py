"""Messages: the reader against files that people make, the split against counting."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from gpt2core.data.sms_spam import Message, read_jsonl, read_table, split, write_jsonl
from gpt2core.errors import UserError

AWKWARD = [
    Message("ham", 'He said "no'),  # one quotation mark: a reader with quoting swallows the rows that follow
    Message("spam", "WIN £100, now!"),
    Message("ham", "one\u2028line, \x85 too"),
    Message("spam", ' "" '),
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "label\ttext{end}", "\ufeff", "\ufefflabel\ttext{end}"])
def test_tsv_is_read_without_quoting(tmp_path: Path, start: str, end: str) -> None:
    rows = "".join(f"{m.label}\t{m.text}{end}" for m in AWKWARD)
    assert read_table(write(tmp_path / "own.tsv", start.format(end=end) + rows)) == AWKWARD


def test_csv_is_read_as_the_csv_module_writes_it(tmp_path: Path) -> None:
    messages = [*AWKWARD, Message("ham", "two\nlines")]
    with (tmp_path / "own.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "Label"])
        writer.writerows([7, m.text, m.label] for m in messages)
    assert read_table(tmp_path / "own.csv") == messages


def test_jsonl_gives_back_what_was_written(tmp_path: Path) -> None:
    messages = [*AWKWARD, Message("ham", "two\nlines\tand a tab")]
    write_jsonl(tmp_path / "sms.jsonl", messages)
    assert read_jsonl(tmp_path / "sms.jsonl") == messages


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "the file is empty"),
        ("a.tsv", "\n\n", "the file is empty"),
        ("a.tsv", "ham\tcaf\xe9".encode("latin-1"), "byte 7 is not UTF-8"),
        ("a.tsv", "ham\thi\nspam win\n", "row 2: 'spam win' has no tab"),
        ("a.tsv", "ham\thi\n\nSpam\twin\n", "row 3: unknown label 'Spam'; allowed: ham, spam"),
        ("a.tsv", "ham\thi\nspam\t \n", "row 2: the text is empty"),
        ("a.tsv", "ham\thi\nham\tho\n", "no row is labelled 'spam'"),
        ("a.tsv", "label\ttext\n", "no row is labelled 'ham'"),
        ("a.csv", "v1,v2\nham,hi\n", "row 1: no column label and no column text; the header line has v1, v2"),
        ("a.csv", "label,body\nham,hi\n", "row 1: no column text"),
        ("a.csv", 'label,text\nham,"a\nb"\neggs,hi\n', "row 4: unknown label 'eggs'"),
        ("a.csv", "label,text\nham\n", "row 2: 1 column"),
        ("a.csv", 'label,text\nham,"hi\nspam,win\n', "not CSV"),
    ],
)
def test_errors_name_file_and_row(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        read_table(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{\n", "row 1: not JSON"),
        ("[]\n", "row 1: must be"),
        ('{"label": "ham"}\n', "row 1: must be"),
    ],
)
def test_errors_of_jsonl_name_file_and_row(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_jsonl(write(tmp_path / "sms.jsonl", content))


def corpus() -> list[Message]:
    """300 ham and 100 spam, then 50 of them again."""
    messages = [Message("spam" if i % 4 == 0 else "ham", f"message {i}") for i in range(400)]
    return messages + messages[:50]


def test_split_is_balanced_stratified_and_without_repeats() -> None:
    splits = split(corpus(), 0.1, 0.2, seed=3)
    assert [Counter(m.label for m in part) for part in splits] == [
        {"ham": 70, "spam": 70},
        {"ham": 10, "spam": 10},
        {"ham": 20, "spam": 20},
    ]
    texts = [m.text for part in splits for m in part]
    assert len(set(texts)) == len(texts)
    assert set(splits.train) | set(splits.val) | set(splits.test) <= set(corpus())
    assert any(a.label == b.label for a, b in zip(splits.train, splits.train[1:], strict=False))  # labels are mixed
    assert [m.label for m in splits.train] != sorted(m.label for m in splits.train)


def test_split_depends_on_the_seed_alone() -> None:
    assert split(corpus(), 0.1, 0.2, seed=3) == split(corpus(), 0.1, 0.2, seed=3)
    assert split(corpus(), 0.1, 0.2, seed=3).test != split(corpus(), 0.1, 0.2, seed=4).test
    # Written down once: the same on every machine and every Python.
    assert [m.text for m in split(corpus(), 0.1, 0.2, seed=3).val[:3]] == ["message 250", "message 320", "message 308"]


def test_a_text_with_two_labels_occurs_once() -> None:
    contradiction = [Message("ham", "message 0"), *corpus()]
    texts = [m.text for part in split(contradiction, 0.2, 0.2, seed=0) for m in part]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("n", [1, 4])
def test_too_few_messages_are_refused(n: int) -> None:
    messages = [Message(label, f"{label} {i}") for i in range(n) for label in ("ham", "spam")] + corpus()[1:4]
    with pytest.raises(UserError, match=f"too few messages to split: {n + 3} ham, {n} spam"):
        split(messages, 0.1, 0.1, seed=0)


def test_the_real_collection_has_5574_messages_of_which_403_repeat_an_earlier_one(mirror: Path) -> None:
    messages = read_table(mirror / "sms-spam-collection" / "SMSSpamCollection")
    assert Counter(m.label for m in messages) == {"ham": 4827, "spam": 747}
    assert len(messages) - len({m.text for m in messages}) == 403
    assert sum(map(len, split(messages, 0.1, 0.2, seed=1))) == 2 * len({m for m in messages if m.label == "spam"})
