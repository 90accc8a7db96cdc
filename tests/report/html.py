"""Reads a page: its elements, and that it fetches nothing."""

from __future__ import annotations

from html.parser import HTMLParser

FETCHES = ("src", "srcset", "poster", "data", "action", "background")


class Page(HTMLParser):
    """Elements as (tag, attributes), and the text outside scripts and style sheets."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def fetched(self) -> list[str]:
        """Addresses that a browser would fetch: none but data URLs may be there."""
        named = [value or "" for _, attributes in self.elements for key, value in attributes.items() if key in FETCHES]
        named += [attributes.get("href") or "" for attributes in self.all("link")]
        return [address for address in named if not address.startswith("data:")]
