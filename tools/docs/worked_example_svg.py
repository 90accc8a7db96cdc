"""The drawing of the worked example: the vector of the last word through the model, with the attention weights."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from worked_example import Steps

WIDTH = 360  # pixels: a phone's width, so that the text is not scaled down
# Text, card, box, box border, accent: the drawing has a card of its own, so that it is readable on any page.
LIGHT = ("#1a1a1a", "#ffffff", "#eef3fa", "#5b7fa6", "#0b5cad")
DARK = ("#f0f0f0", "#1e2129", "#2b3240", "#8fb0d6", "#7cb8ff")
NAMES = ("text", "card", "box", "border", "accent")


def style() -> str:
    """Return the style sheet: one set of colors for light pages and one for dark ones."""

    def colors(values: tuple[str, ...]) -> str:
        return " ".join(f"--{name}: {value};" for name, value in zip(NAMES, values, strict=True))

    return (
        f"svg {{ {colors(LIGHT)} font: 13px sans-serif; }}"
        f" @media (prefers-color-scheme: dark) {{ svg {{ {colors(DARK)} }} }}"
        " text { fill: var(--text); } .small { font-size: 12px; } .title { font-weight: bold; }"
        " .card { fill: var(--card); } .box { fill: var(--box); stroke: var(--border); }"
        " .line { stroke: var(--border); fill: none; } .bar { fill: var(--accent); }"
    )


class Canvas:
    """Elements from the top to the bottom; `y` is where the next one starts."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.y = 12.0

    def text(self, x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> None:
        """Add a line of text."""
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'
        )

    def vector(self, title: str, values: Tensor) -> None:
        """Add a box with a title and a vector of four numbers, and an arrow to what comes next."""
        self.elements.append(f'<rect x="20" y="{self.y:g}" width="320" height="46" rx="6" class="box"/>')
        self.text(WIDTH / 2, self.y + 18, title, "title", "middle")
        for column, value in enumerate(values.tolist()):
            self.text(110 + 60 * column, self.y + 37, f"{value:.2f}".replace("-", "−"), "", "end")
        self.y += 46
        self.arrow()

    def arrow(self) -> None:
        """Add a short arrow down."""
        y = self.y
        self.elements.append(f'<path d="M180 {y:g} v14 m-4 -5 l4 5 l4 -5" class="line"/>')
        self.y += 18

    def attention(self, title: str, words: Sequence[str], weights: Tensor) -> None:
        """Add the last word's attention weights as bars, a row per head and word: [H, T, T]."""
        height = 20 + 18 * weights.size(0) * weights.size(2)
        self.elements.append(f'<rect x="20" y="{self.y:g}" width="320" height="{height + 8:g}" rx="6" class="box"/>')
        self.text(30, self.y + 18, title, "title")
        y = self.y + 38
        for head, rows in enumerate(weights):
            for word, value in zip(words, rows[-1].tolist(), strict=True):
                self.bar(y, f"head {head + 1}: {word}", value)
                y += 18
        self.y += height + 8
        self.arrow()

    def bar(self, y: float, label: str, value: float) -> None:
        """Add a label, a bar of up to 150 pixels, and its value."""
        self.text(30, y, label, "small")
        self.elements.append(f'<rect x="125" y="{y - 10:g}" width="{150 * value:.1f}" height="11" class="bar"/>')
        self.text(330, y, f"{value:.2f}", "small", "end")


def drawing(words: Sequence[str], vocabulary: Sequence[str], steps: Steps) -> str:
    """Return the drawing as SVG."""
    canvas = Canvas()
    last = words[-1]
    canvas.vector(f"{last}: token + position", steps.embedded[-1])
    for number, block in enumerate(steps.blocks, 1):
        canvas.attention(f"block {number}: attention of {last}", words, block.weights)
        canvas.vector(f"block {number}: + attention", block.after_attention[-1])
        canvas.vector(f"block {number}: + feed-forward", block.output[-1])
    canvas.vector("final norm", steps.normed[-1])
    canvas.text(30, canvas.y + 12, "probability of the next word", "title")
    canvas.y += 32
    for word, value in zip(vocabulary, steps.probabilities[-1].tolist(), strict=True):
        canvas.bar(canvas.y, word, value)
        canvas.y += 18
    height = canvas.y + 2
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>The vector of {escape(last)} through two blocks</title>",
        f"<style>{style()}</style>",
        f'<rect width="{WIDTH}" height="{height:g}" rx="8" class="card"/>',
        *canvas.elements,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
