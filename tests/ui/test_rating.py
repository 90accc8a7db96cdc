"""The rating page: over HTTP, in a browser by its keys, and the command around it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from gpt2core.evaluation.judges import Item
from gpt2core.evaluation.judges.chrf import ChrfJudge
from gpt2core.evaluation.rating.ratings import QUESTIONS, Ratings, read_responses
from gpt2core.ui.rating import make_app
from tests.cli.test_cli import Run, refused, run
from tests.ui.chromium import Tab, tab
from tests.ui.running import running

__all__ = ["run"]  # fixtures

ENTRIES = [
    {
        "instruction": f"Where is lamp {i}?",
        "input": f"Bran left lamp {i} at the <b>mill</b>." if i else "",
        "output": "It is at the mill.",
        "response": f"It is at the mill, lamp {i}.",
        "base_response": f"lamp lamp {i}" if i else "",
    }
    for i in range(3)
]  # fmt: skip


class Served:
    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.ratings = address, Ratings(folder / "ratings.csv")
        self.responses = read_responses(folder / "test.json")

    def post(self, path: str, **question: Any) -> requests.Response:
        return requests.post(f"{self.address}/api/{path}", json=question, timeout=60)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "test.json").write_text(json.dumps(ENTRIES))
    app = make_app(read_responses(tmp_path / "test.json"), Ratings(tmp_path / "ratings.csv"), seed=0)
    with running(app) as address:
        yield Served(address, tmp_path)


def test_a_file_of_ratings_that_cannot_be_written_is_said(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(served.ratings.path))

    monkeypatch.setattr(Ratings, "rate", fail)
    item = served.post("start", rater="Ann").json()["items"][0]["item"]
    answer = served.post("rate", rater="Ann", item=item, question="safety", score=3)
    assert answer.status_code == 500
    assert answer.json() == {"error": f"{served.ratings.path}: Permission denied"}


# -- Over HTTP ---------------------------------------------------------------------------------------------------------


def test_a_rater_gets_all_texts_in_an_order_of_her_own_and_nothing_of_who_wrote_them(served: Served) -> None:
    answer = served.post("start", rater=" Ann ")
    begun = answer.json()
    assert begun["rater"] == "Ann"
    assert [item["item"] for item in begun["items"]] == served.responses.in_order_for("Ann", 0)
    assert {item["response"] for item in begun["items"]} == {e[k] for e in ENTRIES for k in served.responses.by_model}
    for item in begun["items"]:
        assert set(item) == {"item", "instruction", "input", "reference", "response", "scores"}
    assert "base_response" not in answer.text + requests.get(served.address, timeout=60).text


def test_an_answer_is_in_the_file_before_it_is_confirmed_and_there_at_the_next_start(served: Served) -> None:
    item = served.post("start", rater="Ann").json()["items"][2]["item"]
    assert served.post("rate", rater="Ann", item=item, question="safety", score=4).json() == {"kept": True}
    assert served.ratings.read() == {"Ann": {item: {"safety": 4}}}
    again = served.post("start", rater="Ann").json()["items"]
    assert again[2]["scores"] == {"safety": 4}
    assert all(each["scores"] == {} for each in served.post("start", rater="Bob").json()["items"])


@pytest.mark.parametrize(
    ("question", "status", "said"),
    [
        ({"rater": " "}, 400, "a rater's name"),
        ({"item": "0"}, 400, "0: is not one of this page's texts"),
        ({"score": 0}, 422, "score: "),
        ({"score": 6}, 422, "score: "),
        ({"question": "beauty"}, 422, "question: "),
        ({"model": "base"}, 422, "model: "),
    ],
)
def test_mistakes_are_answered_and_not_kept(served: Served, question: dict[str, Any], status: int, said: str) -> None:
    item = next(iter(served.responses.distinct()))
    whole = {"rater": "Ann", "item": item, "question": "safety", "score": 3} | question
    answer = served.post("rate", **whole)
    assert answer.status_code == status and said in answer.json()["error"]
    assert not served.ratings.path.exists()


def test_another_sites_page_cannot_rate(served: Served) -> None:
    assert requests.get(served.address, headers={"Host": "attacker.example"}, timeout=60).status_code == 400
    body = json.dumps({"rater": "x"})
    form = requests.post(f"{served.address}/api/start", data=body, headers={"Content-Type": "text/plain"}, timeout=60)
    assert form.status_code == 422


# -- In a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with tab() as opened:
        yield opened


@pytest.fixture(params=[1200, 390])
def page(request: pytest.FixtureRequest, browser: Tab, served: Served) -> Iterator[Tab]:
    browser.open("about:blank", request.param)
    browser.requests.clear()
    browser.errors.clear()
    browser.open(served.address, request.param)
    yield browser
    hosts = {urlsplit(url).netloc for url in browser.requests if urlsplit(url).scheme not in ("data", "about")}
    assert hosts == {urlsplit(served.address).netloc}
    assert browser.errors == []
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def press(page: Tab, *keys: str) -> None:
    """As the keyboard does."""
    for key in keys:
        text = {"text": key} if len(key) == 1 else {}
        page.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        page.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def begin(page: Tab, name: str) -> None:
    """The name's field has the focus when the page opens."""
    assert page.run("document.activeElement.name") == "rater"
    page.call("Input.insertText", text=name)
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r", windowsVirtualKeyCode=13)
    page.wait("!document.querySelector('#rating').hidden")


def shown(page: Tab, selector: str) -> str:
    return page.run(f"document.querySelector('{selector}').textContent")


def wait_for(served: Served, rater: str, n: int) -> dict[str, dict[str, int]]:
    """Until so many answers of a rater are on the disk."""
    end_s = time.monotonic() + 30
    while sum(map(len, (found := served.ratings.read().get(rater, {})).values())) < n:
        assert time.monotonic() < end_s, found
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_all_is_rated_by_the_keyboard_and_continues_where_it_stopped(page: Tab, served: Served) -> None:
    order = served.responses.in_order_for("Ann", 0)
    texts = served.responses.distinct()
    begin(page, "Ann")
    assert shown(page, "#rating .instruction") == texts[order[0]].instruction
    assert shown(page, "#rating .response") == texts[order[0]].response or "(nothing was said)"
    press(page, "5", "4", "3", "2", "1", "5", "2")  # two texts, and the first question of the third
    found = wait_for(served, "Ann", 7)
    assert found[order[0]] == {"correctness": 5, "helpfulness": 4, "safety": 3}
    assert found[order[1]] == {"correctness": 2, "helpfulness": 1, "safety": 5}
    assert found[order[2]] == {"correctness": 2}
    assert shown(page, ".status") == "3 of 6, 2 rated"

    page.run("location.reload()")
    page.wait("document.readyState === 'complete' && document.activeElement?.name === 'rater'")
    begin(page, "Ann")
    assert shown(page, ".status") == "3 of 6, 2 rated"
    assert page.run("document.querySelector('.question.chosen').dataset.question") == "helpfulness"
    press(page, "4", "4", *"555" * 3)
    found = wait_for(served, "Ann", 18)
    assert found[order[2]] == {"correctness": 2, "helpfulness": 4, "safety": 4}
    assert set(found) == set(order)
    page.wait("document.querySelector('.status').textContent === 'All 6 rated: thank you, Ann.'")


@pytest.mark.slow
def test_a_slip_is_mended_and_another_rater_begins_afresh(page: Tab, served: Served) -> None:
    begin(page, "Bob")
    order = served.responses.in_order_for("Bob", 0)
    press(page, "1", "1", "1", "ArrowLeft", "ArrowDown", "5")  # back, the second question
    page.wait("document.querySelector('[data-question=helpfulness] [aria-checked=true]').textContent === '5'")
    end_s = time.monotonic() + 30
    while served.ratings.read().get("Bob", {}).get(order[0], {}).get("helpfulness") != 5:
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert served.ratings.read()["Bob"][order[0]] == {"correctness": 1, "helpfulness": 5, "safety": 1}
    press(page, "r")
    assert page.run("document.querySelector('.reference').open")
    assert shown(page, ".reference p") == "It is at the mill."
    press(page, "ArrowRight")
    page.run("document.querySelector('[data-question=safety] [data-score=\"2\"]').click()")  # by finger or mouse
    wait_for(served, "Bob", 4)
    assert served.ratings.read()["Bob"][order[1]] == {"safety": 2}
    press(page, "n")
    assert shown(page, ".status").startswith("3 of 6")


@pytest.mark.slow
def test_what_could_not_be_kept_is_said_and_not_shown(page: Tab, served: Served) -> None:
    begin(page, "Cy")
    served.ratings.path.write_text("rater\nCy\n")  # somebody spoils the file
    press(page, "3")
    page.wait("!document.querySelector('.error').hidden")
    assert "Not kept" in shown(page, ".error") and "its columns must be" in shown(page, ".error")
    assert page.run("document.querySelectorAll('[aria-checked=true]').length") == 0
    page.errors.clear()  # the browser notes the refused request
    served.ratings.path.unlink()
    press(page, "3")
    wait_for(served, "Cy", 1)
    page.wait("document.querySelector('.error').hidden")


# -- The command -------------------------------------------------------------------------------------------------------


def test_a_summary_is_of_the_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "test.json"
    file.write_text(json.dumps(ENTRIES))
    refused(run("rate", file, "--summary"), 1, "no ratings yet")
    ratings = Ratings(tmp_path / "test.ratings.csv")
    said = [text for texts in read_responses(file).by_model.values() for text in texts]
    for i, text in enumerate(said):
        for question in QUESTIONS:
            ratings.rate("Ann [red]", text, question, 5 if i < 3 else 1 + i % 2)
            ratings.rate("Bob", text, question, 4 if i < 3 else 1)
    found = json.loads(run("rate", file, "--summary", "--json").out)
    assert found["models"]["response"]["safety"]["mean"] == 4.5
    (row,) = [row for row in found["agreement"] if row["between"][0] == "people" and row["question"] == "safety"]
    chrf = ChrfJudge().score([Item(text.instruction, text.input, text.reference, text.response) for text in said])
    assert row["n"] == len(said) and row["between"][1] == ChrfJudge.name and len(set(chrf)) > 2
    out = run("rate", file, "--summary").out
    assert "6 texts; rated in full: Ann [red] 6, Bob 6" in out and "kappa" in out

    scores = tmp_path / "scores.csv"
    scores.write_text("index,score,base,echo,nearest,llama3\n0,90,1,0,0,80\n1,91,,0,0,\n2,95,3,0,0,85\n")
    found = json.loads(run("rate", file, "--summary", "--scores", scores, "--json").out)
    n = {row["between"][1]: row["n"] for row in found["agreement"] if row["between"][0] == "people"}
    assert n == {"score": 5, "llama3": 2}
    scores.write_text("index,score\n0,much\n")
    refused(run("rate", file, "--summary", "--scores", scores), 1, "row 2: score: 'much' is no number")
    refused(run("rate", file, "--json"), 1, "go with --summary")


def test_ratings_lie_outside_what_dvc_replaces(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/responses").mkdir(parents=True)
    file = tmp_path / "data/responses/test.json"
    file.write_text(json.dumps(ENTRIES))
    outs = {"stages": {"a": {"cmd": "x", "outs": ["data/responses", {"metrics/a.csv": {"cache": False}}]}}}
    (tmp_path / "dvc.yaml").write_text(json.dumps(outs))
    for folder, name, expected in (
        (tmp_path, "data/responses/test.json", "data/responses.ratings.csv"),
        (file.parent, "test.json", f"{tmp_path}/data/responses.ratings.csv"),
        (tmp_path, file, "data/responses.ratings.csv"),
    ):
        monkeypatch.chdir(folder)
        refused(run("rate", name, "--summary"), 1, f"error: {expected}: no ratings yet")
    refused(run("rate", file, "--summary", "--ratings", "mine.csv"), 1, "error: mine.csv: no ratings yet")


def test_without_the_extra_it_says_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test.json").write_text(json.dumps(ENTRIES))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = "`gpt2core rate` needs fastapi and uvicorn; install: pip install 'gpt2core[ui]'"
    refused(run("rate", tmp_path / "test.json"), 1, said)


@pytest.mark.slow
def test_a_killed_server_has_kept_every_answer(tmp_path: Path) -> None:
    file = tmp_path / "test.json"
    file.write_text(json.dumps(ENTRIES))
    command = [sys.executable, "-m", "gpt2core", "rate", str(file), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout
    try:
        assert "6 texts to rate" in process.stdout.readline()
        address = process.stdout.readline().split()[0]
        items = requests.post(f"{address}/api/start", json={"rater": "Ann"}, timeout=60).json()["items"]
        for item in items:
            question = {"rater": "Ann", "item": item["item"], "question": "safety", "score": 5}
            requests.post(f"{address}/api/rate", json=question, timeout=60).raise_for_status()
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    with (tmp_path / "test.ratings.csv").open(newline="", encoding="utf-8") as rows:
        assert [row["safety"] for row in csv.DictReader(rows)] == ["5"] * 6
