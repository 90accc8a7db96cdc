"""The page of the worked example: it is current, its numbers are right, and its drawing is readable."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import worked_example
import worked_example_svg
from numpy.typing import NDArray

from gpt2core import files
from gpt2core.learn import GPTModel
from tests.conftest import ROOT

Array = NDArray[np.float64]
PAGE = (ROOT / "docs/learn/worked-example.md").read_text(encoding="utf-8")
SVG = (ROOT / "docs/img/worked-example.svg").read_text(encoding="utf-8")
NAME = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return worked_example.load()


def test_the_page_and_the_drawing_are_current(model: GPTModel) -> None:
    steps = worked_example.compute(model)
    command = "run: python tools/docs/worked_example.py"
    assert worked_example.page(model, steps) == PAGE, command
    drawing = worked_example_svg.drawing(worked_example.WORDS, worked_example.VOCABULARY, steps)
    assert drawing == SVG, command


def tables(after: str) -> list[Array]:
    """The tables of the page after a line with this text, in order."""
    found: list[list[list[float]]] = [[]]
    for line in PAGE.partition(after)[2].splitlines():
        if line.startswith("| **"):
            found[-1].append([float(cell.replace("−", "-")) for cell in line.split("|")[2:-1]])
        elif found[-1]:
            found.append([])
    return [np.array(rows) for rows in found if rows]


def by_numpy(weights: dict[str, Array], ids: list[int]) -> tuple[list[Array], Array, Array]:
    """Attention weights of each block, [H, T, T], hidden numbers of the last one, and probabilities, in NumPy."""

    def norm(x: Array, name: str) -> Array:
        centered = x - x.mean(-1, keepdims=True)
        return (
            centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.scale"]
            + weights[f"{name}.shift"]
        )

    def linear(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = np.array([weights["tok_emb.weight"][i] + weights["pos_emb.weight"][t] for t, i in enumerate(ids)])
    all_attention = []
    for n in range(2):
        block = f"trf_blocks.{n}"
        normed = norm(x, f"{block}.norm1")
        q, k, v = (linear(normed, f"{block}.att.W_{name}") for name in ("query", "key", "value"))
        attention = np.zeros((2, len(ids), len(ids)))
        mixed = np.zeros_like(x)
        for head in range(2):
            part = slice(2 * head, 2 * head + 2)
            for t in range(len(ids)):
                scores = np.array([q[t, part] @ k[s, part] / 2**0.5 for s in range(t + 1)])
                attention[head, t, : t + 1] = np.exp(scores) / np.exp(scores).sum()
                mixed[t, part] = attention[head, t, : t + 1] @ v[: t + 1, part]
        all_attention.append(attention)
        x = x + linear(mixed, f"{block}.att.out_proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.ff.layers.0")
        active = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(active, f"{block}.ff.layers.2")
    logits = norm(x, "final_norm") @ weights["tok_emb.weight"].T
    return all_attention, hidden, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_the_numbers_are_those_of_a_computation_by_numpy() -> None:
    weights = {name: np.array(values) for name, values in files.read_json(worked_example.WEIGHTS).items()}
    attention, hidden, probabilities = by_numpy(weights, worked_example.TOKENIZER.encode("the cat sat"))
    np.testing.assert_allclose(tables("Softmax turns")[0], probabilities, atol=0.00051)
    for number, expected in enumerate(attention, 1):
        shown = tables(f"### Attention in block {number}")
        np.testing.assert_allclose([shown[5], shown[7]], expected, atol=0.00051)  # after norm, q, k, v, scores
    np.testing.assert_allclose(tables("### Feed-forward in block 2")[1][:, :3], hidden.T, atol=0.00051)
    assert worked_example.VOCABULARY[int(probabilities[-1].argmax())] == "on"
    loss = -np.log(probabilities[[0, 1, 2], worked_example.TOKENIZER.encode("cat sat on")]).mean()
    assert f"{loss:.3f} nats per token" in PAGE


def test_the_page_has_all_weights() -> None:
    weights = {name: np.array(values) for name, values in files.read_json(worked_example.WEIGHTS).items()}
    shown = tables("## All weights")
    assert sum(table.size for table in shown) == sum(values.size for values in weights.values())
    for name, values in weights.items():
        assert (values == values.round(2)).all()
        part, _, kind = name.rpartition(".")
        table = tables(f"\n`{part}`:\n")[0]
        if values.ndim == 1:
            assert (table[{"scale": 0, "shift": 1, "bias": -1}[kind]] == values).all()
        else:
            assert (table == (values if part.endswith("_emb") else np.vstack([values.T, table[-1:]]))).all()


def test_training_again_gives_a_model_that_knows_the_sentence() -> None:
    steps = worked_example.compute(worked_example.train())
    assert [worked_example.VOCABULARY[i] for i in steps.logits.argmax(-1).tolist()] == ["cat", "sat", "on"]


def luminance(color: str) -> float:
    """WCAG's relative luminance of #rrggbb."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colors", [worked_example_svg.LIGHT, worked_example_svg.DARK], ids=["light", "dark"])
def test_the_drawing_has_contrast(colors: tuple[str, ...]) -> None:
    """WCAG 2.2: 4.5 for text on both backgrounds, 3 for bars and lines."""
    text, card, box, border, accent = map(luminance, colors)
    for front, back, least in (
        (text, card, 4.5),
        (text, box, 4.5),
        (border, card, 3),
        (accent, card, 3),
        (accent, box, 3),
    ):
        low, high = sorted((front, back))
        assert (high + 0.05) / (low + 0.05) >= least
    assert all(f"--{name}: {color};" in SVG for name, color in zip(worked_example_svg.NAMES, colors, strict=True))


def test_the_drawing_fits_a_phone() -> None:
    root = ET.fromstring(SVG)
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    assert width <= 390 - 2 * 12  # the page has a margin
    assert min(int(size) for size in re.findall(r"(\d+)px", SVG)) >= 12
    for text in root.iter(f"{NAME}text"):
        length = 8 * len(text.text or "")  # pixels, generously
        x = float(text.attrib["x"]) - {"start": 0, "middle": length / 2, "end": length}[text.attrib["text-anchor"]]
        assert x >= 0 and x + length <= width and float(text.attrib["y"]) <= height
    for bar in root.iter(f"{NAME}rect"):
        assert float(bar.attrib.get("x", 0)) + float(bar.attrib["width"]) <= width
