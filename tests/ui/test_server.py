"""What the page's server answers: the models' own words, and whose mistake it was."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from fastapi.testclient import TestClient

import gpt2core
from gpt2core import cli, prompts
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.inference import generate
from gpt2core.inference.respond import respond
from gpt2core.ui import server
from gpt2core.ui.models import Models, find_models
from tests.report.html import Page


def post(address: str, path: str, **question: Any) -> requests.Response:
    return requests.post(f"{address}/api/{path}", json=question, timeout=60, stream=True)


def lines(answer: requests.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.iter_lines()]


def test_generate_streams_the_text_that_the_library_writes(address: str, models_dir: Path) -> None:
    model, tokenizer = gpt2core.load(models_dir / "pretrained")
    drawn: dict[str, Any] = {
        "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 3,
    }  # fmt: skip
    *pieces, end = lines(
        post(address, "generate", model=str(models_dir / "pretrained"), prompt="The lamp", max_new_tokens=20, **drawn)
    )
    ids = torch.tensor([tokenizer.encode("The lamp")])
    written = generate(model, ids, 20, **drawn)[0, ids.size(1) :].tolist()
    if tokenizer.eot_id in written:
        written = written[: written.index(tokenizer.eot_id)]
    assert "".join(piece["text"] for piece in pieces) == tokenizer.decode(written)
    assert end["tokens"] == len(written) and end["seconds"] > 0
    assert len(pieces) > 3  # as it comes, not in one piece


def test_generate_ends_before_the_stop_text(address: str, models_dir: Path) -> None:
    question = {"model": str(models_dir / "pretrained"), "prompt": "The", "max_new_tokens": 30, "seed": 1}

    def text(**more: str) -> str:
        return "".join(line.get("text", "") for line in lines(post(address, "generate", **question, **more)))

    whole = text()
    stop = whole[len(whole) // 2 :][:3]
    assert text(stop=stop) == whole[: whole.index(stop)]


@pytest.mark.parametrize("input_text", ["", "The lamp is lit."])
def test_respond_gives_what_the_library_answers(address: str, models_dir: Path, input_text: str) -> None:
    model, tokenizer = gpt2core.load(models_dir / "instruct")
    entry = {"instruction": "Where is the lamp?", "input": input_text}
    *pieces, _ = lines(post(address, "respond", model=str(models_dir / "instruct"), max_new_tokens=24, **entry))
    (expected,) = respond(model, tokenizer, [entry], 24)
    assert "".join(piece["text"] for piece in pieces).strip() == expected


def test_respond_asks_in_the_form_that_the_model_keeps(models_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = gpt2core.load(models_dir / "instruct")
    save_model(tmp_path / "phi3", model, tokenizer, chat_template=prompts.chat_template(prompts.phi3))
    client = TestClient(server.make_app(Models(find_models([tmp_path / "phi3"]))), base_url="http://127.0.0.1")
    asked = {"model": str(tmp_path / "phi3"), "instruction": "Where is the lamp?", "max_new_tokens": 24}
    told = [json.loads(line) for line in client.post("/api/respond", json=asked).text.splitlines()]
    (expected,) = respond(model, tokenizer, [{**asked, "input": ""}], 24, form=prompts.phi3)
    assert "".join(line.get("text", "") for line in told).strip() == expected
    assert [expected] != respond(model, tokenizer, [{**asked, "input": ""}], 24)


def test_classify_gives_the_classifiers_probabilities(address: str, models_dir: Path) -> None:
    model, tokenizer = gpt2core.load(models_dir / "classifier")
    texts = ["The lamp", "took the lamp to the tower", "lit"]
    answer = post(address, "classify", model=str(models_dir / "classifier"), texts=texts).json()
    assert answer["labels"] == ["ham", "spam"]
    for text, p in zip(texts, answer["probabilities"], strict=True):
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            expected = model(ids, torch.tensor([ids.size(1)])).softmax(-1)[0]
        torch.testing.assert_close(torch.tensor(p), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["pretrained", "classifier"])
def test_inspect_gives_the_page_of_the_text(address: str, models_dir: Path, name: str) -> None:
    page = Page(post(address, "inspect", model=str(models_dir / name), prompt="The <b>lamp").text)
    assert "The <b>lamp" in page.text and page.all("b") == [] and page.fetched() == []


@pytest.mark.parametrize(
    ("path", "question", "status", "said"),
    [
        ("generate", {"model": "nobody"}, 400, "nobody: is not one of the models of this page"),
        ("generate", {"model": "classifier"}, 400, "is a classifier, not a language model"),
        ("classify", {"model": "pretrained", "texts": ["a"]}, 400, "is a language model, not a classifier"),
        ("generate", {"model": "pretrained", "temperature": -1}, 400, "temperature: -1.0 must be"),
        ("generate", {"model": "pretrained", "top_p": 7}, 400, "top_p: 7.0 must be above 0"),
        ("generate", {"model": "pretrained", "max_new_tokens": 0}, 422, "max_new_tokens: "),
        ("generate", {"model": "pretrained", "tempreature": 1}, 422, "tempreature: "),
        ("classify", {"model": "classifier", "texts": []}, 422, "texts: "),
        ("respond", {"model": "instruct", "instruction": "lamp " * 900}, 400, "which leaves no room for a response"),
        ("inspect", {"model": "pretrained", "prompt": "lamp " * 900}, 400, "shorten it"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    address: str, models_dir: Path, path: str, question: dict[str, Any], status: int, said: str
) -> None:
    if question["model"] != "nobody":
        question = question | {"model": str(models_dir / question["model"])}
    answer = post(address, path, **question)
    assert answer.status_code == status and said in answer.json()["error"]


def test_another_sites_page_cannot_use_the_server(address: str, models_dir: Path) -> None:
    """Neither under a name of its own that points here, nor by a form that a browser sends without asking."""
    assert requests.get(address, headers={"Host": "attacker.example"}, timeout=60).status_code == 400
    body = json.dumps({"model": str(models_dir / "pretrained")})
    form = requests.post(f"{address}/api/generate", data=body, headers={"Content-Type": "text/plain"}, timeout=60)
    assert form.status_code == 422
    assert requests.options(f"{address}/api/generate", timeout=60).status_code == 405  # no answer to a preflight


def test_who_goes_away_stops_the_model(address: str, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counting(*arguments: Any, **more: Any) -> Any:
        for column in original(*arguments, **more):
            drawn.append(time.monotonic())
            yield column

    original = server.stream
    monkeypatch.setattr(server, "stream", counting)
    answer = post(address, "generate", model=str(models_dir / "pretrained"), prompt="The", max_new_tokens=100_000)
    next(answer.iter_lines(chunk_size=1))
    answer.close()
    time.sleep(0.5)
    soon = len(drawn)
    time.sleep(0.5)
    assert 0 < soon == len(drawn) < 100_000


# -- The command -------------------------------------------------------------------------------------------------------


def refused(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["gpt2core", "ui", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return str(ended.value.code)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, models_dir: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = refused(monkeypatch, str(models_dir))
    assert said == "error: `gpt2core ui` needs fastapi and uvicorn; install: pip install 'gpt2core[ui]'"


def test_a_port_that_is_taken_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch, models_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: cannot be served" in refused(monkeypatch, str(models_dir), "--port", str(port))


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c_which_is_clean(models_dir: Path) -> None:
    """Also while a text is being written."""
    command = [sys.executable, "-m", "gpt2core", "ui", str(models_dir), "--port", "0"]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stdout
    try:
        kinds = [process.stdout.readline().split()[0] for _ in range(4)]
        assert kinds == ["language", "language", "instruct", "classifier"]
        address = process.stdout.readline().split()[0]
        assert "Generate" in requests.get(address, timeout=60).text
        answer = post(address, "generate", model=str(models_dir / "pretrained"), max_new_tokens=100_000)
        next(answer.iter_lines(chunk_size=1))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in errors and errors.strip().endswith("interrupted")
