"""Labelled texts: the reader against files that people make, the split against counting."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from gpt2core.errors import UserError
from gpt2core.tasks.labeled_texts import Message, classes, read_table, split, write_jsonl

AWKWARD = [
    Message("ham", 'He said "no'),  # one quotation mark: a reader with quoting swallows the rows that follow
    Message("spam", "WIN £100, now!"),
    Message("ham", "one\u2028line, \x85 too"),
    Message("spam", ' "" '),
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
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
    assert read_table(tmp_path / "sms.jsonl") == messages


TOPICS = [Message("sport", "a goal, late"), Message("weather", "rain"), Message("home & garden", "a red rose")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "".join(f"{label}\t{text}\n" for label, text in TOPICS)),
        ("a.tsv", "id\tCategory\tsentence\n" + "".join(f"7\t{label}\t{text}\n" for label, text in TOPICS)),
        ("a.csv", 'class,message\nsport,"a goal, late"\nweather,rain\nhome & garden,a red rose\n'),
        ("a.csv", 'target, label ,text\n1,sport,"a goal, late"\n2,weather,rain\n3,home & garden,a red rose\n'),
        ("a.jsonl", "\n".join(json.dumps({"content": text, "n": [1], "label": label}) for label, text in TOPICS)),
    ],
)
def test_columns_are_found_by_their_names(tmp_path: Path, name: str, content: str) -> None:
    assert read_table(write(tmp_path / name, content)) == TOPICS
    assert classes(TOPICS) == ("home & garden", "sport", "weather")


def test_columns_are_taken_by_the_names_that_the_params_give(tmp_path: Path) -> None:
    for name, content in (
        ("a.csv", "label,tag,body\nx,a,one\nx,b,two\n"),
        ("a.tsv", "tag\tlabel\tbody\na\tx\tone\nb\tx\ttwo\n"),
        ("a.jsonl", '{"label": 1, "tag": "a", "body": "one"}\n{"label": 1, "tag": "b", "body": "two"}\n'),
    ):
        assert read_table(write(tmp_path / name, content), "tag", "body") == [("a", "one"), ("b", "two")]


def test_numbers_are_labels_in_their_order(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"label": n, "text": f"text {n}"}) + "\n" for n in (10, 9, 2))
    messages = read_table(write(tmp_path / "a.jsonl", rows))
    assert [m.label for m in messages] == ["10", "9", "2"]
    assert classes(messages) == ("2", "9", "10")


def test_parquet_is_read_and_the_names_of_its_numbered_classes(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["rain", "a goal", "snow"], "label": [1, 0, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "plain.parquet")
    assert [m.label for m in read_table(tmp_path / "plain.parquet")] == ["1", "0", "1"]

    def named(*names: str) -> Path:
        """As the `datasets` library writes it."""
        known = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
        pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": known}), tmp_path / "named.parquet")
        return tmp_path / "named.parquet"

    assert read_table(named("sport", "weather")) == [("weather", "rain"), ("sport", "a goal"), ("weather", "snow")]
    with pytest.raises(UserError, match=r"named.parquet, row 1: label 1 is none of 0 to 0"):
        read_table(named("sport"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "the file is empty"),
        ("a.tsv", "\n\n", "the file is empty"),
        ("a.tsv", "ham\tcaf\xe9".encode("latin-1"), "byte 7 is not UTF-8"),
        ("a.tsv", "ham\thi\nspam win\n", "row 2: 'spam win' has no tab"),
        ("a.tsv", "ham\thi\n\nHam\twin\n", "row 3: label 'Ham' is 'ham' of row 1 but for capitals"),
        ("a.tsv", "ham\thi\nspam\t \n", "row 2: the text is empty"),
        ("a.tsv", "ham\thi\nham\tho\n", "every row is labeled 'ham'; texts of two classes at least are needed"),
        ("a.tsv", "label\ttext\n", "there is no row"),
        ("a.tsv", "id\tlabel\ttext\n1\tham\n", "row 2: 2 column(s), the header has 3"),
        (
            "a.csv",
            "v1,v2\nham,hi\n",
            "row 1: no column label (or class, category, target) and no column text (or message, sentence, content); "
            "there are: v1, v2; name it by data.classification_label_column and data.classification_text_column "
            "in params.yaml",
        ),
        ("a.csv", "label,body\nham,hi\n", "row 1: no column text"),
        ("a.csv", "label;text\nham;hi\n", "separate the cells by commas"),
        ("a.csv", "label,message,content\nham,hi,ho\n", "row 1: columns message and content may both be the text"),
        ("a.csv", 'label,text\nham,"a\nb"\n ,hi\n', "row 4: the label is empty"),
        ("a.csv", "label,text\nham\n", "row 2: 1 column"),
        ("a.csv", 'label,text\nham,"hi\nspam,win\n', "not CSV"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "{\n", "row 1: not JSON"),
        ("a.jsonl", "[]\n", "row 1: must be an object"),
        ("a.jsonl", '{"label": "ham"}\n', "row 1: no column text"),
        ("a.jsonl", '{"label": "ham", "text": "hi"}\n{"label": "ham"}\n', "row 2: has no text; it has label"),
        ("a.jsonl", '{"label": 0.5, "text": "hi"}\n', "row 1: the label must be a text or a whole number, found 0.5"),
        ("a.jsonl", '{"label": "ham", "text": ["hi"]}\n', "row 1: the text must be a text, found ['hi']"),
        ("a.jsonl", '{"label": "ham", "text": "\\ud800"}\n', "row 1: half of a surrogate pair"),
        ("a.parquet", b"text", "damaged or no Parquet file"),
    ],
)
def test_errors_name_file_and_row(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        read_table(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_column_that_is_named_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "label,text\nham,hi\n")
    with pytest.raises(
        UserError, match=r"row 1: no column 'tag'; there are: label, text; name it by data.classification_label_c"
    ):
        read_table(path, label_column="tag")
    with pytest.raises(UserError, match="column 'text' cannot be both the label and the text"):
        read_table(path, label_column="text")


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


@pytest.mark.parametrize("balance", [True, False])
def test_a_class_of_three_is_in_each_split_and_one_of_two_is_refused(balance: bool) -> None:
    messages = [Message("ham", f"ham {i}") for i in range(90)] + [Message("spam", f"spam {i}") for i in (1, 2, 2)]
    with pytest.raises(UserError, match="too few messages to split: class 'spam' has 2, without repeats"):
        split(messages, 0.1, 0.1, seed=0, balance=balance)
    splits = split([*messages, Message("spam", "spam 3")], 0.1, 0.1, seed=0, balance=balance)
    assert [sum(m.label == "spam" for m in part) for part in splits] == [1, 1, 1]


def test_a_column_that_names_no_classes_is_told_of_in_a_short_message() -> None:
    with pytest.raises(UserError, match=r"class 'id 0' has 1, .* and 495 more, .* the 500 classes") as error:
        split([Message(f"id {i}", f"text {i}") for i in range(500)], 0.1, 0.1, seed=0)
    assert len(str(error.value)) < 400


def test_without_balance_each_split_has_its_share_of_every_class() -> None:
    sizes = {"a": 200, "b": 50, "c": 10}
    messages = [Message(label, f"{label} {i}") for label, n in sizes.items() for i in range(n)]
    splits = split(messages, 0.1, 0.2, seed=5, balance=False)
    assert [Counter(m.label for m in part) for part in splits] == [
        {"a": 140, "b": 35, "c": 7},
        {"a": 20, "b": 5, "c": 1},
        {"a": 40, "b": 10, "c": 2},
    ]
    assert sorted(m for part in splits for m in part) == sorted(messages)
    balanced = split(messages, 0.1, 0.2, seed=5)
    assert [Counter(m.label for m in part) for part in balanced] == [dict.fromkeys("abc", n) for n in (7, 1, 2)]


def test_repeats_that_are_kept_are_in_one_split_alone() -> None:
    messages = [*corpus(), *corpus(), Message("ham", "message 0")]
    splits = split(messages, 0.1, 0.2, seed=3, balance=False, drop_duplicates=False)
    assert sorted(m for part in splits for m in part) == sorted(messages)
    texts = [{m.text for m in part} for part in splits]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_the_real_collection_has_5574_messages_of_which_403_repeat_an_earlier_one(mirror: Path) -> None:
    messages = read_table(mirror / "sms-spam-collection" / "SMSSpamCollection")
    assert Counter(m.label for m in messages) == {"ham": 4827, "spam": 747}
    assert len(messages) - len({m.text for m in messages}) == 403
    assert sum(map(len, split(messages, 0.1, 0.2, seed=1))) == 2 * len({m for m in messages if m.label == "spam"})


def test_labels_that_only_look_equal_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "label,text\ncaf\u00e9,a\ncafe\u0301,b\n")
    with pytest.raises(UserError, match=r"row 3: label 'cafe\\u0301' is 'caf\\xe9' of row 2 but for how Unicode"):
        read_table(path)


@pytest.mark.parametrize("label", ["9" * 5000, "a" * 5000])
def test_a_label_as_long_as_a_text_is_refused(tmp_path: Path, label: str) -> None:
    path = write(tmp_path / "a.csv", f"label,text\nham,a\n{label},b\n")
    with pytest.raises(UserError, match="row 3: the label has 5,000 characters"):
        classes(read_table(path))
