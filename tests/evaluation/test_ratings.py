"""People's ratings: what is rated, the file, and what it adds up to."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path

import pytest
from scipy import stats

from gpt2core.errors import UserError
from gpt2core.evaluation.metrics.agreement import weighted_kappa
from gpt2core.evaluation.rating.ratings import (
    COLUMNS,
    QUESTIONS,
    SCORES,
    Ratings,
    Response,
    checked_name,
    read_responses,
)
from gpt2core.evaluation.rating.statistics import summarize

ENTRIES = [
    {
        "instruction": f"Add {i} and 1.",
        "input": "" if i % 2 else "a, b\n\"c\"",
        "output": str(i + 1),
        "response": f"It is {i + 1}.",
        "base_response": f"It is {i + 1}." if i == 0 else f"= {i}",
    }
    for i in range(6)
]  # fmt: skip


@pytest.fixture
def responses_file(tmp_path: Path) -> Path:
    path = tmp_path / "test.json"
    path.write_text(json.dumps(ENTRIES))
    return path


def test_json_and_csv_are_the_same_responses(responses_file: Path) -> None:
    as_csv = responses_file.with_suffix(".csv")
    with as_csv.open("w", newline="", encoding="utf-8-sig") as file:  # as Excel writes it
        writer = csv.DictWriter(file, list(ENTRIES[0]))
        writer.writeheader()
        writer.writerows(ENTRIES)
    read = read_responses(responses_file)
    assert read == read_responses(as_csv)
    assert list(read.by_model) == ["response", "base_response"]
    assert list(read_responses(responses_file, ["base_response"]).by_model) == ["base_response"]
    assert len(read.distinct()) == 11  # of the first entry both models said the same


def test_the_order_is_the_raters_own_and_tells_nothing_of_who_wrote(responses_file: Path) -> None:
    read = read_responses(responses_file)
    order = read.in_order_for("Ann", 0)
    assert sorted(order) == sorted(read.distinct()) == sorted(read.in_order_for("Bob", 0))
    assert order == read.in_order_for("Ann", 0)
    assert len({tuple(read.in_order_for(rater, seed)) for rater in ("Ann", "Bob") for seed in (0, 1)}) == 4
    entries = [{**e, "response": e["base_response"], "base_response": e["response"]} for e in ENTRIES]
    responses_file.write_text(json.dumps(entries))
    assert read_responses(responses_file).in_order_for("Ann", 0) == order


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "must be a list of entries"),
        ('[{"instruction": "a"}]', "no key ends with 'response'; it has instruction"),
        ('[{"instruction": "a", "response": "b"}, {"instruction": "a"}]', "entry 2: 'response' must be a text"),
        ('[{"instruction": " ", "response": "b"}]', "entry 1: 'instruction' is blank"),
        ('[{"instruction": "a", "input": 3, "response": "b"}]', "entry 1: 'input' must be a text, found 3"),
    ],
)
def test_mistakes_in_responses_are_told(responses_file: Path, content: str, said: str) -> None:
    responses_file.write_text(content)
    with pytest.raises(UserError, match=said):
        read_responses(responses_file)


def test_an_unknown_model_is_told(responses_file: Path) -> None:
    with pytest.raises(UserError, match="has no 'other'; its responses are response, base_response"):
        read_responses(responses_file, ["other"])


def test_each_answer_is_kept_and_read_by_anything_that_reads_csv(tmp_path: Path) -> None:
    ratings = Ratings(tmp_path / "r.csv")
    text = Response('Say "hi",\nplease.', "=1+1", "hi", "hi\r\nthere, ünser")
    assert ratings.read() == {}
    ratings.rate("Ann", text, "correctness", 4)
    ratings.rate("Ann", text, "safety", 5)
    ratings.rate("Ann", text, "correctness", 2)
    ratings.rate("Bob", text, "helpfulness", 1)
    assert ratings.read() == {
        "Ann": {text.item: {"correctness": 2, "safety": 5}}, "Bob": {text.item: {"helpfulness": 1}},
    }  # fmt: skip
    with ratings.path.open(newline="", encoding="utf-8") as file:
        header, ann, bob = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert ann == ["Ann", text.item, "2", "", "5", text.instruction, "'=1+1", text.response]  # no formula
    assert bob[2:5] == ["", "1", ""]


def test_raters_at_once_lose_nothing(tmp_path: Path) -> None:
    texts = [Response("a", "", "", str(i)) for i in range(5)]

    def work(rater: str) -> None:
        ratings = Ratings(tmp_path / "r.csv")  # as a process of its own would have
        for text in texts:
            for question in QUESTIONS:
                ratings.rate(rater, text, question, 3)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ABC"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {text.item: dict.fromkeys(QUESTIONS, 3) for text in texts}
    assert Ratings(tmp_path / "r.csv").read() == dict.fromkeys("ABC", expected)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["rater,item"], None),  # no row, nothing to complain of
        (["rater,item", "Ann,1"], "its columns must be rater, item, correctness"),
        ([",".join(COLUMNS), "Ann,1,6,,,a,,b"], "row 2: correctness must be 1 to 5 or empty, found '6'"),
        ([",".join(COLUMNS), "Ann,1,5,,,a,,b", "Ann,1,4,,,a,,b"], "row 3: Ann has rated this text in row 2"),
        ([",".join(COLUMNS), "Ann,1,5"], "row 2: 3 column.*header has 8"),
    ],
)
def test_a_damaged_file_of_ratings_is_told_and_left_alone(tmp_path: Path, rows: list[str], said: str | None) -> None:
    path = tmp_path / "r.csv"
    path.write_text("\n".join(rows) + "\n")
    before = path.read_bytes()
    if said is None:
        assert Ratings(path).read() == {}
        return
    with pytest.raises(UserError, match=said):
        Ratings(path).rate("Bob", Response("a", "", "", "b"), "safety", 1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 61])
def test_names_are_names(name: str) -> None:
    with pytest.raises(UserError, match="a rater's name"):
        checked_name(name)
    assert checked_name(" Zoë ") == "Zoë"


def test_weighted_kappa_is_cohens_formula() -> None:
    first, second = [1, 2, 3, 4, 5, 5, 2, None], [1, 3, 3, 5, 5, 1, 2, 4]
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None]
    observed = sum((a - b) ** 2 for a, b in pairs) / len(pairs)
    by_chance = sum((a - b) ** 2 for a, _ in pairs for _, b in pairs) / len(pairs) ** 2
    assert weighted_kappa(first, second, SCORES) == pytest.approx(1 - observed / by_chance)
    assert weighted_kappa([1, 2, 3], [1, 2, 3], SCORES) == 1
    assert weighted_kappa([3, 3], [3, 3], SCORES) is None
    assert weighted_kappa([None], [1], SCORES) is None


def test_a_summary_joins_raters_and_judges(responses_file: Path, tmp_path: Path) -> None:
    responses = read_responses(responses_file)
    ratings = Ratings(tmp_path / "r.csv")
    tuned, base = responses.by_model["response"], responses.by_model["base_response"]
    for i, (a, b) in enumerate(zip(tuned, base, strict=True)):
        for question in QUESTIONS:
            ratings.rate("Ann", a, question, 5 - i % 2)
            ratings.rate("Bob", a, question, 4 + (i > 2))
        if b.item != a.item:
            ratings.rate("Ann", b, "correctness", 1 + i % 3)
    ratings.rate("Ann", Response("of another training", "", "", "x"), "correctness", 1)
    judge = {text.item: float(10 * i) for i, text in enumerate([*tuned, *base])}
    found = summarize(responses, ratings.read(), {"judge": judge}, seed=0)
    assert found["texts"] == 11
    assert found["raters"] == {"Ann": 6, "Bob": 6}
    anns, bobs = [5, 4, 5, 4, 5, 4], [4, 4, 4, 5, 5, 5]
    figures = found["models"]["response"]["correctness"]
    assert figures["mean"] == pytest.approx(sum(anns + bobs) / 12, abs=1e-4) and figures["n"] == 6
    assert figures["ci_low"] < figures["mean"] < figures["ci_high"]
    of_base = found["models"]["base_response"]["correctness"]  # of the shared text it is both raters' mean
    assert of_base["mean"] == pytest.approx((4.5 + 2 + 3 + 1 + 2 + 3) / 6, abs=1e-4)
    assert found["models"]["base_response"]["safety"] == {"mean": 4.5, "ci_low": 4.5, "ci_high": 4.5, "n": 1}
    rows = {(*row["between"], row["question"]): row for row in found["agreement"]}
    assert len(rows) == 2 * len(QUESTIONS)
    row = rows["Ann", "Bob", "correctness"]
    assert row["n"] == 6
    assert row["spearman"] == pytest.approx(stats.spearmanr(anns, bobs).statistic, abs=1e-4)
    row = rows["people", "judge", "helpfulness"]
    means = [(a + b) / 2 for a, b in zip(anns, bobs, strict=True)]
    scores = [judge[text.item] for text in tuned]
    assert (row["kappa"], row["n"]) == (None, 6)
    assert row["spearman"] == pytest.approx(stats.spearmanr(means, scores).statistic, abs=1e-4)
    json.dumps(found, allow_nan=False)
