"""The hooks of the site's build; `make docs` builds it, strictly, and sets every formula by KaTeX."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tests.learn.test_chapters import PAGES

exceptions = pytest.importorskip("mkdocs.exceptions")
HOOKS = runpy.run_path(str(ROOT / "docs" / "mkdocs_hooks.py"))


@pytest.mark.parametrize(
    "html",
    [
        '<link rel="preconnect" href="https://fonts.gstatic.com" crossorigin>',
        "<script src=//cdn.example/katex.js></script>",
        '<img alt="a curve" src="http://example.org/curve.png">',
    ],
)
def test_a_page_that_fetches_from_elsewhere_is_refused(html: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="01-text.md"))
    with pytest.raises(exceptions.PluginError, match="01-text.md: would be fetched from elsewhere"):
        HOOKS["on_post_page"](f"<p>{html}</p>", page, None)
    harmless = '<a href="https://example.org">a link</a> <img src="img/zipf.svg">'
    assert HOOKS["on_post_page"](harmless, page, None) == harmless


def test_a_style_sheet_brings_the_fonts_that_it_names(tmp_path: Path) -> None:
    sheet = tmp_path / "a.css"
    sheet.write_text("@font-face {src: url(./files/one.woff2) format('woff2'), url('files/two.woff')}")
    expected = [sheet, tmp_path / "files/one.woff2", tmp_path / "files/two.woff"]
    assert list(HOOKS["with_what_it_names"](sheet)) == expected
    with pytest.raises(exceptions.PluginError, match="b.css is missing; run: npm ci"):
        list(HOOKS["with_what_it_names"](tmp_path / "b.css"))


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("!!python/name:", "")
    nav = [entry if isinstance(entry, str) else next(iter(entry.values())) for entry in YAML().load(text)["nav"]]
    assert nav == ["index.md", *(path.name for path in PAGES)]


def test_the_reference_has_every_module_once() -> None:
    text = "".join(HOOKS["reference_page"](name) for name in HOOKS["parts"]())
    shown = re.findall(r"^::: gpt2core\.([\w.]+)$", text, re.MULTILINE)
    package = ROOT / "gpt2core"
    modules = {".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("[a-z]*.py")}
    assert len(shown) == len(set(shown))
    assert {name for name in modules if not name.startswith("cli.")} <= set(shown)
    assert "inference" in shown  # its __init__ defines what others implement
