"""The page of one inspection, in a real browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2core.inspect import ClassifierInspection, LanguageModelInspection, inspect
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.report.inside import inspection_page, script_data
from gpt2core.tokenizer.train import train_bpe
from tests.report.browser import dom
from tests.report.html import Page

TEXT = "The keeper took the lamp </script><b>to</b> the tower & left."
L, H = 2, 3


@pytest.fixture(scope="module")
def inspections() -> tuple[LanguageModelInspection, ClassifierInspection]:
    tokenizer = train_bpe([TEXT * 4], 286)
    config = GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=24, n_layer=L, n_head=H, initializer_range=0.5)
    torch.manual_seed(0)
    ids = tokenizer.encode(TEXT)
    lm, classifier = GPT(config).eval(), GPTClassifier(config, ("ham", "spam")).eval()
    return inspect(lm, tokenizer, ids), inspect(classifier, tokenizer, ids)


@pytest.fixture(scope="module")
def page(inspections, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(inspection_page("models/<mine>", TEXT, inspections[0]), encoding="utf-8")
    return path


def test_the_script_gets_every_weight_to_a_quarter_of_a_percent(inspections) -> None:
    data = script_data(inspections[0])
    T = len(data["tokens"])
    roots = np.frombuffer(base64.b64decode(data["attention"]), np.uint8).reshape(L, H, T, T) / 255
    np.testing.assert_allclose(roots**2, inspections[0].attention.numpy(), atol=0.004)


def test_a_page_is_one_file_in_which_no_text_is_markup(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    found = Page(html)
    assert found.fetched() == []
    assert "Inside models/<mine>" in found.text and TEXT in found.text
    assert found.all("b") == []
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in found.all("meta"))
    assert "prefers-color-scheme: dark" in html
    (data,) = re.findall(r'<script type="application/json" id="inspection">(.*?)</script>', html)
    assert json.loads(data)["n_head"] == H


@pytest.mark.slow
def test_the_page_draws_what_is_chosen(page: Path, inspections) -> None:
    """A click on a token and on a head: what is said is the number of that token and head."""
    inspection = inspections[0]
    T, layer, head, t = len(inspection.tokens), 0, 2, 5
    click = (
        f"document.querySelectorAll('.tokens button')[{t}].click();"
        f"document.querySelectorAll('.heads button')[{layer * H + head}].click();"
    )
    found = dom(page, click)
    shown = Page(found)
    buttons = shown.all("button")
    assert len(buttons) == T + L * H
    assert [i for i, b in enumerate(buttons) if b.get("aria-pressed") == "true"] == [t, T + layer * H + head]
    row = inspection.attention[layer, head, t]
    best = int(row.argmax())
    expected = f"{inspection.tokens[t]} attends to {inspection.tokens[best]}: "
    said = re.search(re.escape(expected) + r"(\d+)%", shown.text)
    assert said and abs(int(said[1]) - 100 * float(row[best])) <= 1
    assert f"What comes after token {t + 1}, {inspection.tokens[t]}" in shown.text
    for candidate in inspection.lens[-1][t][:3]:
        assert f"{candidate.token} " in shown.text
    losses = [f"{loss:.2f}" for loss in inspection.loss_nats if loss is not None]
    assert all(loss in shown.text for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_sticks_out_of_the_page(page: Path, width: int) -> None:
    script = "document.body.setAttribute('data-wide', document.documentElement.scrollWidth - innerWidth)"
    (body,) = Page(dom(page, script, width)).all("body")
    assert int(body["data-wide"] or 1) <= 0


@pytest.mark.slow
def test_a_classifiers_page_has_the_class_by_layer(inspections, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(inspection_page("models/classifier", TEXT, inspections[1]), encoding="utf-8")
    shown = Page(dom(path))
    assert "The class if the model ended at ham spam layer 2 (the model)" in shown.text
    ham, spam = inspections[1].classes[-1]
    numbers = re.search(r"layer 2 \(the model\) <?([\d.]+)% <?([\d.]+)%", shown.text)
    assert numbers and float(numbers[1]) == pytest.approx(100 * ham, abs=0.6)
    assert float(numbers[2]) == pytest.approx(100 * spam, abs=0.6)
    assert "loss" not in shown.text
