"""The documentation site in a real browser: nothing is clipped, and axe finds no barrier, on a phone and a desktop."""

from __future__ import annotations

import csv
import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report import axe
from tests.report.browser import executable
from tests.ui.chromium import Tab, tab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PAGES = (
    "index.html", "guide.html", "speed.html", "learn/index.html", "learn/glossary.html",
    "learn/07-multi-head-attention.html", "learn/15-theory.html", "api/model.html",
)  # fmt: skip
# Code and formulas whose end the reader cannot see without scrolling sideways.
CLIPPED = """[...document.querySelectorAll('.md-content pre > code, .md-content .katex-display')].filter(
    element => element.scrollWidth > element.clientWidth + 1 || element.getBoundingClientRect().right > innerWidth + 1
).map(element => element.textContent.slice(0, 80))"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site, built and served."""
    pytest.importorskip("mkdocs")
    executable()  # skips without a browser
    axe.install()  # skips without npm
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Tab]:
    with tab() as made:
        yield made


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_all_and_has_no_barrier(browser: Tab, address: str, page: str, width: int, scheme: str) -> None:
    browser.call("Page.navigate", url="about:blank")  # an open page would store its theme again
    browser.wait("location.href === 'about:blank'")
    browser.call("Storage.clearDataForOrigin", origin=address, storageTypes="all")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.errors.clear()
    browser.open(f"{address}/{page}", width)
    browser.wait("document.body.dataset.mdColorScheme === " + ("'slate'" if scheme == "dark" else "'default'"))
    browser.run("document.fonts.ready.then(() => new Promise(done => setTimeout(done, 300)))")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(CLIPPED) == []
    assert axe.barriers(browser) == []
    assert browser.errors == []


def test_the_slider_shows_the_loss_and_the_text_of_each_step(browser: Tab, address: str) -> None:
    with (ROOT / "metrics/plots/pretrain.csv").open(encoding="utf-8") as file:
        losses = {int(row["tokens"]): (row["step"], float(row["val_loss"])) for row in csv.DictReader(file)}
    samples = json.loads((ROOT / "metrics/samples.json").read_text(encoding="utf-8"))
    browser.open(f"{address}/learn/10-training.html", 390)
    for number in (len(samples) - 1, 0):
        browser.run(
            f"(slider => {{ slider.value = {number}; slider.dispatchEvent(new Event('input')); }})"
            "(document.querySelector('.training-steps input'))"
        )
        step, loss = losses[samples[number]["tokens"]]
        assert browser.run("document.querySelector('.training-steps output').textContent").startswith(
            f"{step}: validation loss {loss:.2f}"
        )
        assert browser.run("document.querySelector('.training-steps p').textContent") == samples[number]["text"]
    assert browser.errors == []
