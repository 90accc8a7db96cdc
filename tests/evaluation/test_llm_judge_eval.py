"""chrF++ against its formula and GPT-4's order, the bootstrap against the normal interval, and the whole report."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from scipy.stats import spearmanr

from gpt2core.config.judge import Judge as JudgeParams
from gpt2core.errors import UserError
from gpt2core.evaluation.judges import Item, Pair, Preference, make_judges
from gpt2core.evaluation.judges.chrf import ChrfJudge
from gpt2core.evaluation.llm_judge_eval import evaluate_responses, read_responses
from gpt2core.evaluation.metrics.agreement import agreement
from gpt2core.evaluation.metrics.intervals import bootstrap_interval
from gpt2core.evaluation.metrics.nearest import nearest_outputs

MIRROR = Path(os.environ.get("GPT2CORE_MIRROR") or Path(__file__).parents[2] / "../shared/mirror")


def entry(instruction: str, input: str = "", output: str = "x", **more: str) -> dict[str, str]:
    return {"instruction": instruction, "input": input, "output": output, **more}


# -- chrF++ -----------------------------------------------------------------------------------------------------------


def chrf_pp(response: str, reference: str) -> float:
    """chrF++ from its definition: the mean precision and recall over all n-gram orders, joined in an F2 score."""

    def grams(units: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(units[i : i + order]) for i in range(len(units) - order + 1))

    precisions, recalls = [], []
    for split, max_order in ((lambda text: list("".join(text.split())), 6), (str.split, 2)):
        for order in range(1, max_order + 1):
            ours, theirs = grams(split(response), order), grams(split(reference), order)
            if ours and theirs:  # orders longer than the text do not count
                shared = (ours & theirs).total()
                precisions.append(shared / ours.total())
                recalls.append(shared / theirs.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("The car is as fast as a bullet", "The car is as fast as lightning"),
        ("yes", "no way at all"),
        ("cat", "cats"),
        ("a b a b a b", "b a b"),
        ("Größe und Maß", "Größe und Maße"),
    ],
)
def test_chrf_is_its_formula_and_sacrebleus_corpus_score(response: str, reference: str) -> None:
    (score,) = ChrfJudge().score([Item("i", "", reference, response)])
    assert score == pytest.approx(chrf_pp(response, reference))
    assert score == pytest.approx(sacrebleu.corpus_chrf([response], [[reference]], word_order=2).score)


def test_chrf_ends_of_the_scale() -> None:
    items = [Item("i", "", "Paris.", response) for response in ("Paris.", "", " \n", "xyz")]
    assert ChrfJudge().score(items) == [pytest.approx(100), 0, 0, 0]


def test_chrf_orders_real_responses_nearly_as_gpt4_does() -> None:
    folder = MIRROR / "judge-examples"
    if not folder.is_dir():
        pytest.skip("no judge-examples: set GPT2CORE_MIRROR to a mirror that holds them")
    entries = json.loads((folder / "eval-example-data.json").read_text(encoding="utf-8"))
    items, gpt4 = [], []
    for model in ("1", "2"):
        items += [Item(e["instruction"], e["input"], e["output"], e[f"model {model} response"]) for e in entries]
        gpt4 += json.loads((folder / f"scores-gpt4-model-{model}-response.json").read_text(encoding="utf-8"))
    scores = ChrfJudge().score(items)
    assert len(scores) == len(gpt4) == 200
    assert spearmanr(scores, gpt4).statistic == pytest.approx(0.87, abs=0.01)
    assert np.mean(scores) == pytest.approx(82, abs=1)


# -- bootstrap --------------------------------------------------------------------------------------------------------


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    scores = np.random.default_rng(1).uniform(0, 100, size=400)
    low, high = bootstrap_interval(scores.tolist(), samples=4000, seed=3)
    half = 1.96 * scores.std() / math.sqrt(len(scores))
    assert low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.1 * half)


def test_bootstrap_covers_the_true_mean_about_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_interval(generator.normal(50, 10, size=40).tolist(), samples=300, seed=trial)
        hits += low <= 50 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_repeats_by_seed_and_is_a_point_for_equal_scores() -> None:
    scores = [0.0, 30.0, 70.0, 100.0]
    assert bootstrap_interval(scores, 100, seed=1) == bootstrap_interval(scores, 100, seed=1)
    assert bootstrap_interval(scores, 100, seed=1) != bootstrap_interval(scores, 100, seed=2)
    assert bootstrap_interval([42.0] * 9, 50, seed=0) == (42.0, 42.0)


# -- nearest ----------------------------------------------------------------------------------------------------------


def test_nearest_is_the_one_that_shares_the_rare_words() -> None:
    train = [
        entry("Name the capital of the land.", "France", "Paris"),
        entry("Name the capital of the land.", "Peru", "Lima"),
        entry("Spell the word.", "zebra", "z e b r a"),
    ]
    queries = [entry("Spell this.", "zebra"), entry("What is the capital of Peru?"), entry("Add 3 + 5.", "")]
    assert nearest_outputs(train, queries)[:2] == ["z e b r a", "Lima"]


def test_nearest_sees_single_characters_and_signs() -> None:
    train = [entry("Reckon.", task, task) for task in ("3 + 4", "3 - 5", "3 + 5", "9 - 5")]
    assert nearest_outputs(train, [entry("Reckon.", "3 + 5"), entry("Reckon.", "3 - 5")]) == ["3 + 5", "3 - 5"]


def test_nearest_takes_the_first_of_equals_and_of_none() -> None:
    train = [entry("other", "", "0"), entry("one two", "", "1"), entry("two one", "", "2"), entry("one", "two", "3")]
    assert nearest_outputs(train, [entry("two", "one"), entry("unknown words")]) == ["1", "0"]


def test_nearest_is_the_cosine_by_hand_over_many_queries() -> None:
    generator = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    make = lambda n: [entry(" ".join(generator.choice(words, 6)), "", str(i)) for i in range(n)]  # noqa: E731
    train, queries = make(40), make(300)
    texts = [Counter(e["instruction"].split()) for e in train]
    idf = {w: math.log((1 + len(texts)) / (1 + sum(w in t for t in texts))) + 1 for w in words}  # sklearn's smooth idf

    def cosine(a: Counter[str], b: Counter[str]) -> float:
        norm = lambda t: math.sqrt(sum((t[w] * idf[w]) ** 2 for w in t))  # noqa: E731
        return sum(a[w] * b[w] * idf[w] ** 2 for w in a) / (norm(a) * norm(b))

    for query, answer in zip(queries, nearest_outputs(train, queries), strict=True):
        cosines = [cosine(Counter(query["instruction"].split()), text) for text in texts]
        assert cosines[int(answer)] == pytest.approx(max(cosines))


# -- the report -------------------------------------------------------------------------------------------------------


class LengthJudge:
    """Scores a response by its length; leaves out those that say "skip"."""

    name = "length"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        return [None if item.response == "skip" else float(len(item.response)) for item in items]


TRAIN = [entry("red apple", "", "1234567"), entry("blue sky", "", "12")]
TEST = [
    entry("apple", "in", "ref", response="abcd", base_response="a"),
    entry("sky", "", "ref", response="skip", base_response="ab"),
    entry("sky", "longest", "ref", response="abcdefgh", base_response=""),
]


def test_report_holds_the_means_of_all_four() -> None:
    report = evaluate_responses(TEST, TRAIN, [LengthJudge()], bootstrap_samples=200, seed=0)
    metrics = report.metrics
    assert list(metrics) == [
        "judge", "mean_score", "ci_low", "ci_high", "base_score", "echo_score", "nearest_score", "coverage", "n",
    ]  # fmt: skip
    assert metrics["judge"] == "length"
    assert metrics["mean_score"] == 6.0  # of 4 and 8
    assert (metrics["ci_low"], metrics["ci_high"]) == (4.0, 8.0)
    assert metrics["base_score"] == 1.0  # of 1, 2, 0
    assert metrics["echo_score"] == 4.0  # of "in", "sky", "longest"
    assert metrics["nearest_score"] == 3.6667  # of 7, 2, 2
    assert (metrics["coverage"], metrics["n"]) == (0.6667, 3)
    json.dumps(metrics, allow_nan=False)  # plain Python numbers


def test_report_csv_keeps_an_empty_cell_for_what_was_not_scored() -> None:
    text = evaluate_responses(TEST, TRAIN, [LengthJudge()], bootstrap_samples=10, seed=0).to_csv()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["score"] for row in rows] == ["4.0", "", "8.0"]
    assert rows[1] == {"index": "1", "score": "", "base": "2.0", "echo": "3.0", "nearest": "2.0"}
    assert "\r" not in text


class HalfJudge(LengthJudge):
    """Half of the length, and always for what stands first unless both are equally long."""

    name = "half"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        return [score and score / 2 for score in super().score(items)]

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference | None]:
        return ["tie" if len(pair.first) == len(pair.second) else "first" for pair in pairs]


def test_several_judges_stand_side_by_side_and_the_first_gives_the_headline() -> None:
    test = [entry("a", response="x" * n, base_response="") for n in (1, 5, 2, 40)]
    evaluation = evaluate_responses(test, TRAIN, [LengthJudge(), HalfJudge()], bootstrap_samples=50, seed=0)
    metrics = evaluation.metrics
    assert (metrics["judge"], metrics["mean_score"]) == ("length", 12.0)
    assert {name: found["mean_score"] for name, found in metrics["judges"].items()} == {"length": 12.0, "half": 6.0}
    assert metrics["agreement"] == {"length and half": {"pearson": 1.0, "spearman": 1.0, "kendall": 1.0, "n": 4}}
    assert (metrics["panel"]["mean_score"], metrics["panel"]["n"]) == (9.0, 4)
    assert metrics["panel"]["ci_low"] < 9 < metrics["panel"]["ci_high"]
    rows = list(csv.DictReader(io.StringIO(evaluation.to_csv())))
    assert [row["half"] for row in rows] == ["0.5", "2.5", "1.0", "20.0"]
    json.dumps(metrics, allow_nan=False)


def test_the_panel_leaves_out_what_one_judge_did_not_score() -> None:
    metrics = evaluate_responses(TEST, TRAIN, [LengthJudge(), HalfJudge()], 20, seed=0).metrics
    assert (metrics["panel"]["mean_score"], metrics["panel"]["n"]) == (4.5, 2)  # of 4, 2 and 8, 4


def test_agreement_is_its_formulas() -> None:
    a, b = [1.0, 2.0, None, 3.0, 4.0, 4.0], [10.0, 40.0, 7.0, None, 20.0, 30.0]
    x, y = np.array([1, 2, 4, 4]), np.array([10, 40, 20, 30])
    ranks_x, ranks_y = np.array([1, 2, 3.5, 3.5]), np.array([1, 4, 2, 3])
    found = agreement(a, b)
    assert found["n"] == 4
    assert found["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef(ranks_x, ranks_y)[0, 1])
    # Of 6 pairs one is tied in x; 3 stand in the same order, 2 in the other.
    assert found["kendall"] == pytest.approx((3 - 2) / math.sqrt(5 * 6))


@pytest.mark.parametrize("scores", [[1.0, 2.0], [5.0, 5.0, 5.0], [None, None, None]])
def test_there_is_no_agreement_of_too_few_or_equal_scores(scores: list[float | None]) -> None:
    found = agreement(scores, [float(i) for i in range(len(scores))])
    assert (found["pearson"], found["spearman"], found["kendall"]) == (None, None, None)


def test_who_always_prefers_the_first_finds_only_ties_that_flip() -> None:
    test = [entry("a", response=r, base_response=b) for r, b in (("xx", "y"), ("x", "yyy"), ("x", "y"))]
    metrics = evaluate_responses(test, TRAIN, [HalfJudge()], 20, seed=0, pairwise=True).metrics
    assert metrics["pairwise"]["half"] == {
        "win_rate": 0.5, "ci_low": 0.5, "ci_high": 0.5, "wins": 0, "ties": 3, "losses": 0, "order_flips": 2,
        "coverage": 1.0, "n": 3,
    }  # fmt: skip


def test_chrf_prefers_what_is_nearer_to_the_reference_in_either_order() -> None:
    responses = [("the red door", "a cat"), ("a cat", "the red door"), ("same", "same"), ("the red door", "door")]
    test = [entry("a", output="the red door", response=r, base_response=b) for r, b in responses]
    metrics = evaluate_responses(test, TRAIN, [ChrfJudge()], 200, seed=0, pairwise=True).metrics["pairwise"]["chrf"]
    assert (metrics["wins"], metrics["losses"], metrics["ties"], metrics["order_flips"]) == (2, 1, 1, 0)
    assert metrics["win_rate"] == 0.625
    assert metrics["ci_low"] < 0.625 < metrics["ci_high"]


def test_report_repeats_byte_for_byte(tmp_path: Path) -> None:
    judges = make_judges(judge_params(kind="chrf"), 1, tmp_path)
    first, second = (evaluate_responses(TEST, TRAIN, judges, bootstrap_samples=50, seed=1) for _ in range(2))
    assert (first.metrics, first.to_csv()) == (second.metrics, second.to_csv())
    assert first.metrics["judge"] == "chrf"


def judge_params(**changes: object) -> JudgeParams:
    values = dict(
        kind="chrf", base_url=None, model=None, model_dir=None, num_ctx=None, timeout_s=5.0, max_retries=0,
        concurrency=1, requests_per_minute=None, pairwise=False,
    )  # fmt: skip
    return JudgeParams(**{**values, "min_coverage": 1.0, "bootstrap_samples": 10, "max_items": None, **changes})


# -- input ------------------------------------------------------------------------------------------------------------


def write(folder: Path, test: object = TEST, train: object = TRAIN) -> Path:
    (folder / "test.json").write_text(json.dumps(test), encoding="utf-8")
    (folder / "train.json").write_text(json.dumps(train), encoding="utf-8")
    return folder


def without(entries: list[dict[str, str]], index: int, key: str) -> list[dict[str, str]]:
    return [{k: v for k, v in e.items() if (i, k) != (index, key)} for i, e in enumerate(entries)]


def test_responses_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_responses(write(tmp_path)) == (TEST, TRAIN)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"test": without(TEST, 1, "base_response")}, ["test.json", "entry 2 of 3", "'base_response'"]),
        ({"train": without(TRAIN, 0, "instruction")}, ["train.json", "entry 1 of 2", "'instruction'"]),
        ({"test": [{**TEST[0], "response": None}]}, ["test.json", "entry 1", "'response'", "None"]),
        ({"test": [*TEST, "text"]}, ["test.json", "entry 4", "'text'"]),
        ({"test": [{**TEST[0], "output": " "}]}, ["test.json", "entry 1", "'output'", "blank"]),
        ({"test": []}, ["test.json", "nothing"]),
        ({"train": {"a": 1}}, ["train.json", "dict"]),
    ],
)
def test_bad_responses_name_file_entry_and_key(tmp_path: Path, files: dict[str, object], said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_responses(write(tmp_path, **files))
    assert all(part in str(caught.value) for part in [*said, "finetune-instruct"])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test\.json: no such file"):
        read_responses(tmp_path)
    write(tmp_path)
    (tmp_path / "train.json").write_text("[{", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.json: not JSON"):
        read_responses(tmp_path)
