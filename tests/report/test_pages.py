"""The report, the inspect page, and the page to try models, in a browser: on a phone, a tablet, and a desktop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpt2core.inspect import inspect
from gpt2core.model import GPT, GPTConfig
from gpt2core.report.inside import inspection_page
from gpt2core.report.pipeline import report_page
from gpt2core.tokenizer.train import train_bpe
from gpt2core.ui.models import Models, find_models
from gpt2core.ui.server import make_app
from tests.report.axe import barriers
from tests.ui.chromium import Tab, tab
from tests.ui.conftest import models_dir  # noqa: F401
from tests.ui.running import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEXT = "The keeper took the lamp to the tower."
SCREENS = [(390, "light"), (768, "dark"), (1280, "light"), (1280, "dark")]
PRETRAIN = {"val_loss": 0.4274, "val_perplexity": 1.53, "bits_per_byte": 0.1528, "bits_per_byte_floor": 0.1383,
            "trigram_bits_per_byte": 0.507}  # fmt: skip
CLASSIFIER = {"test_accuracy": 0.985, "test_f1": 0.98, "before_test_accuracy": 0.5, "before_test_f1": 0.4,
              "baseline_test_accuracy": 0.9, "baseline_test_f1": 0.9, "labels": ["ham", "spam"],
              "confusion_matrix": [[9, 1], [0, 10]], "before_confusion_matrix": [[5, 5], [5, 5]]}  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[dict[str, str]]:  # noqa: F811
    """The address of each page."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "metrics").mkdir()
    (folder / "metrics/pretrain.json").write_text(json.dumps(PRETRAIN))
    (folder / "metrics/finetune_classify.json").write_text(json.dumps(CLASSIFIER))
    (folder / "report.html").write_text(report_page(folder), encoding="utf-8")
    tokenizer = train_bpe([TEXT * 4], 270)
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=24, n_layer=2, n_head=3, initializer_range=0.5)
    inspection = inspect(GPT(config).eval(), tokenizer, tokenizer.encode(TEXT))
    (folder / "inspect.html").write_text(inspection_page("models/pretrained", TEXT, inspection), encoding="utf-8")
    with running(make_app(Models(find_models([models_dir])))) as address:
        yield {name: (folder / f"{name}.html").as_uri() for name in ("report", "inspect")} | {"ui": address}


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with tab() as opened:
        yield opened


@pytest.mark.parametrize("name", ["report", "inspect", "ui"])
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_a_page_fits_and_has_no_barrier(
    browser: Tab, pages: dict[str, str], name: str, width: int, scheme: str
) -> None:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call("Page.setBypassCSP", enabled=True)  # for axe itself
    browser.open(pages[name], width)
    browser.run("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert barriers(browser) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_bars_are_as_long_as_their_numbers(browser: Tab, pages: dict[str, str], width: int) -> None:
    browser.open(pages["report"], width)
    widths = browser.run("[...document.querySelectorAll('.bar')].map(bar => bar.getBoundingClientRect().width)")
    entropy, ours, trigram = widths
    assert trigram > 0.6 * min(width, 46 * 16)
    assert entropy / trigram == pytest.approx(0.1383 / 0.507, rel=0.01)
    assert ours / trigram == pytest.approx(0.1528 / 0.507, rel=0.01)
    assert browser.run("document.querySelector('.bars').ariaLabel").endswith("trigram model 0.5070")


def test_a_wide_table_is_a_list_on_a_phone(browser: Tab, pages: dict[str, str]) -> None:
    count = "document.querySelectorAll('#classifier ~ div tbody tr')[0].children"
    tops = f"new Set([...{count}].map(cell => cell.getBoundingClientRect().top)).size"
    browser.open(pages["report"], 1280)
    assert browser.run(tops) == 1
    browser.open(pages["report"], 390)
    assert browser.run(tops) == 3
    label = browser.run(f"getComputedStyle({count}[1], '::before').content")
    assert label == '"accuracy"'


def test_the_heads_are_one_tab_stop_with_arrow_keys(browser: Tab, pages: dict[str, str]) -> None:
    browser.open(pages["inspect"], 1280)
    heads = "[...document.querySelectorAll('.heads button')]"
    assert browser.run(f"{heads}.map(head => head.tabIndex)") == [-1, -1, -1, 0, -1, -1]  # layer 2, head 1

    def press(key: str) -> str:
        browser.run(
            f"{heads}.find(head => head.tabIndex === 0).dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))"
        )
        return browser.run("document.querySelector('.chosen').textContent")

    assert press("ArrowRight") == "Layer 2, head 2"
    assert press("ArrowUp") == "Layer 1, head 2"
    assert press("ArrowUp") == "Layer 1, head 2"  # the edge
    assert press("ArrowLeft") == "Layer 1, head 1"
    assert press("ArrowDown") == "Layer 2, head 1"
    assert browser.run("document.activeElement.getAttribute('aria-label')") == "layer 2, head 1"
    assert browser.run(f"{heads}.filter(head => head.tabIndex === 0).length") == 1
