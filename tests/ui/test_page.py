"""The page in Chromium, at the width of a desktop and of a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

import gpt2core
from tests.ui.chromium import Tab, tab

pytestmark = pytest.mark.slow
WIDTHS = (1200, 390)
TABS = ("generate", "classify", "respond", "inside")


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with tab() as opened:
        yield opened


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Tab, address: str) -> Iterator[Tab]:
    """Freshly opened. Whatever a test does: nothing is fetched from elsewhere, no script complains."""
    browser.open("about:blank", request.param)
    browser.requests.clear()
    browser.errors.clear()
    browser.open(address, request.param)
    yield browser
    hosts = {urlsplit(url).netloc for url in browser.requests if urlsplit(url).scheme not in ("data", "about")}
    assert hosts == {urlsplit(address).netloc}
    assert browser.errors == []
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def submit(page: Tab, name: str, **fields: str | float) -> None:
    """Choose a tab by a click, fill its form, press its button."""
    page.run(f"document.querySelector('#tab-{name}').click()")
    assert page.run("[...document.querySelectorAll('[role=tabpanel]')].filter(p => !p.hidden).map(p => p.id)") == [name]
    for field, value in fields.items():
        page.run(f"document.querySelector('#{name} [name={field}]').value = {value!r}")
    page.run(f"document.querySelector('#{name} form .buttons button').click()")


def wait_for_end(page: Tab, name: str) -> None:
    page.wait(f"!document.querySelector('#{name} form .buttons button').disabled")


def text_of(page: Tab, selector: str) -> str:
    return page.run(f"document.querySelector('{selector}').innerText")


def test_generate_shows_the_text_while_it_comes(page: Tab, models_dir: Path) -> None:
    page.run(
        "window.seen = new Set(); const text = document.querySelector('#generate .text');"
        "new MutationObserver(() => seen.add(text.textContent.length)).observe(text, {childList: true, subtree: true})"
    )
    submit(page, "generate", prompt="The lamp", temperature=0, max_new_tokens=40)
    wait_for_end(page, "generate")
    model, tokenizer = gpt2core.load(models_dir / "pretrained")
    ids = tokenizer.encode("The lamp")
    with torch.no_grad():
        for _ in range(40):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] == tokenizer.eot_id:
                break
    expected = tokenizer.decode([token for token in ids if token != tokenizer.eot_id])
    assert page.run("document.querySelector('#generate .text').textContent") == expected
    assert page.run("seen.size") > 3
    assert "tokens" in text_of(page, "#generate .status")


def test_stop_ends_a_text_and_the_next_can_be_asked_for(page: Tab) -> None:
    page.run(  # in the page: by the time that a question from here has its answer, the text may have ended by itself
        "const [written, stop] = ['text', 'stop'].map(name => document.querySelector('#generate .' + name));"
        "new MutationObserver((_, watch) => {"
        "  if (written.textContent.length > 10) { watch.disconnect(); stop.click() }"
        "}).observe(written, {childList: true, subtree: true, characterData: true})"
    )
    submit(page, "generate", prompt="The", max_new_tokens=100_000, seed=5)
    wait_for_end(page, "generate")
    assert text_of(page, "#generate .status") == "Stopped."
    submit(page, "generate", max_new_tokens=3)
    wait_for_end(page, "generate")
    assert text_of(page, "#generate .status").startswith("3 tokens")


def test_a_mistake_is_shown_and_goes_away(page: Tab) -> None:
    submit(page, "generate", top_p=0, max_new_tokens=2)
    wait_for_end(page, "generate")
    assert "top_p: 0.0 must be above 0" in text_of(page, "#generate .error")
    page.errors.clear()  # the browser notes the refused request
    submit(page, "generate", top_p=0.5)
    wait_for_end(page, "generate")
    assert page.run("document.querySelector('#generate .error').hidden")


def press_enter(page: Tab, selector: str) -> None:
    page.run(
        f"document.querySelector('{selector}').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true, bubbles: true}))"
    )


def test_two_settings_are_compared_side_by_side(page: Tab) -> None:
    page.run("document.querySelector('#generate .compare').click()")
    assert page.run("[...document.querySelectorAll('#generate .side')].map(side => side.hidden)") == [False, False]
    page.run("document.querySelectorAll('#generate [name=max_new_tokens]')[1].value = 3")
    page.run("document.querySelectorAll('#generate [name=model]')[1].selectedIndex = 1")
    submit(page, "generate", prompt="The lamp", max_new_tokens=5)
    wait_for_end(page, "generate")
    shown = page.run("[...document.querySelectorAll('#generate .status')].map(line => line.textContent.split(',')[0])")
    assert shown == ["5 tokens", "3 tokens"]
    texts = page.run("[...document.querySelectorAll('#generate .text')].map(text => text.textContent)")
    assert all(text.startswith("The lamp") for text in texts)
    tops = page.run("[...document.querySelectorAll('#generate .side')].map(side => side.getBoundingClientRect().top)")
    assert (tops[0] == tops[1]) == (page.run("innerWidth") > 600)  # on a phone, one below the other
    page.run("document.querySelector('#generate .compare').click()")
    assert page.run("document.querySelectorAll('#generate .side')[1].hidden")


def test_the_history_brings_a_prompt_and_its_settings_back(page: Tab) -> None:
    submit(page, "generate", prompt="The first lamp", max_new_tokens=2, seed=7)
    wait_for_end(page, "generate")
    submit(page, "generate", prompt="The second lamp", max_new_tokens=3, seed=8)
    wait_for_end(page, "generate")
    entries = page.run("[...document.querySelectorAll('#generate .history li p')].map(text => text.textContent)")
    assert [text[:12] for text in entries] == ["The second l", "The first la"]
    page.run("document.querySelectorAll('#generate .history button')[1].click()")
    fields = ["prompt", "max_new_tokens", "seed", "top_k"]
    shown = page.run(f"{fields}.map(name => document.querySelector(`#generate [name=${{name}}]`).value)")
    assert shown == ["The first lamp", "2", "7", ""]


def test_examples_fill_the_form_and_ctrl_enter_sends_it(page: Tab) -> None:
    page.run("document.querySelectorAll('#generate .examples button')[1].click()")
    assert page.run("document.querySelector('#generate [name=prompt]').value") == "One day, Mira"
    page.run("document.querySelector('#generate [name=max_new_tokens]').value = 2")
    press_enter(page, "#generate [name=prompt]")
    wait_for_end(page, "generate")
    assert text_of(page, "#generate .text").startswith("One day, Mira")


def test_a_text_is_copied_or_selected(page: Tab) -> None:
    assert page.run("document.querySelector('#generate .copy').disabled")
    submit(page, "generate", prompt="The lamp", max_new_tokens=2)
    wait_for_end(page, "generate")
    page.run("document.querySelector('#generate .copy').click()")
    page.wait("['Copied', 'Selected'].includes(document.querySelector('#generate .copy').textContent)")
    text = page.run("document.querySelector('#generate .text').textContent")
    if page.run("document.querySelector('#generate .copy').textContent") == "Selected":
        assert page.run("getSelection().toString()").split() == text.split()


def test_settings_are_collapsed_and_open_at_a_wrong_value(page: Tab) -> None:
    settings = "document.querySelector('#generate .settings')"
    assert not page.run(f"{settings}.open")
    submit(page, "generate", max_new_tokens=0)
    page.wait(f"{settings}.open")
    assert page.run("document.querySelector('#generate [name=max_new_tokens]').validationMessage")
    explained = page.run(f"[...{settings}.querySelectorAll('.controls > div')].map(div => div.children[1].textContent)")
    assert len(explained) == 8 and all(explained)


def test_a_model_of_the_embedded_data_says_what_it_knows(page: Tab) -> None:
    assert "knows nothing else" in text_of(page, "#generate .note")
    page.run("const select = document.querySelector('#generate select'); select.selectedIndex = 1; select.onchange()")
    assert text_of(page, "#generate .note") == ""  # a model without a card


def test_classify_has_a_row_for_each_line(page: Tab) -> None:
    submit(page, "classify", texts="The <b>lamp</b>\n\n  lit  ")
    wait_for_end(page, "classify")
    rows = page.run("[...document.querySelectorAll('#classify tr')].map(r => [...r.children].map(c => c.textContent))")
    assert rows[0] == ["text", "class", "ham", "spam"]
    assert [row[0] for row in rows[1:]] == ["The <b>lamp</b>", "lit"]
    for row in rows[1:]:
        ham, spam = (float(cell.rstrip("%")) for cell in row[2:])
        assert ham + spam == pytest.approx(100, abs=0.11)
        assert row[1] == ("ham" if ham > spam else "spam")


def test_respond_answers(page: Tab) -> None:
    submit(page, "respond", instruction="Where is the lamp?", max_new_tokens=12)
    wait_for_end(page, "respond")
    assert "token" in text_of(page, "#respond .status")
    options = page.run("document.querySelectorAll('#respond .side:first-child option').length")
    assert options == 1  # only what follows instructions


def test_look_inside_shows_the_inspection_and_its_choices_work(page: Tab) -> None:
    submit(page, "inside", prompt="The lamp was lit.")
    wait_for_end(page, "inside")
    inside = "document.querySelector('iframe').contentDocument"
    assert page.run(f"{inside}.querySelector('blockquote').textContent") == "The lamp was lit."
    assert page.run(f"{inside}.querySelectorAll('.heads button').length") == 4  # 2 layers of 2 heads
    page.run(f"{inside}.querySelectorAll('.heads button')[0].click()")
    assert page.run(f"{inside}.querySelector('.chosen').textContent") == "Layer 1, head 1"
    # The whole of it can be seen without a second scroll bar.
    page.wait(f"document.querySelector('iframe').clientHeight >= {inside}.documentElement.scrollHeight")
    assert page.run(f"{inside}.documentElement.scrollWidth <= {inside}.documentElement.clientWidth")


def test_tabs_go_by_arrow_keys_and_by_address(page: Tab) -> None:
    press = "dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
    for i in range(len(TABS)):
        page.run(f"document.querySelector('#tab-{TABS[i]}').{press}")
        chosen = page.run("document.querySelector('[role=tab][aria-selected=true]').id")
        assert chosen == f"tab-{TABS[(i + 1) % len(TABS)]}" == page.run("document.activeElement.id")
    page.run("location.hash = 'respond'")
    page.wait("!document.querySelector('#respond').hidden")
