"""Figures: what they show, that they repeat byte for byte, and that bad input is named."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from inspect import isfunction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpt2core.errors import UserError
from gpt2core.tracking.plots import curves, figure, scores, text
from tests.tracking import draw_all
from tests.tracking.draw_all import ACCURACY, BINS, CURVE, TOKENS, attention

ROOT = Path(__file__).parents[2]
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


def texts(path: Path) -> list[str]:
    """All text of an SVG file, in order."""
    return [element.text.strip() for element in ElementTree.parse(path).iter(f"{SVG}text") if element.text]


def lines(path: Path, colour: str) -> list[int]:
    """For each line of this colour in the plot, its number of points."""
    root = ElementTree.parse(path)
    paths = [
        element
        for group in root.iter(f"{SVG}g")
        if group.get("id", "").startswith("line2d")
        for element in group.findall(f"{SVG}path")
        if f"stroke: {colour.lower()}" in element.get("style", "") and element.get("clip-path")
    ]
    return [element.get("d", "").count("L") + 1 for element in paths]


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    (tmp_path / "curve.csv").write_text(CURVE)
    return tmp_path / "curve.csv"


def test_a_loss_curve_names_its_axes_and_links_evaluations_over_empty_cells(curve: Path, tmp_path: Path) -> None:
    curves.draw_curve(curves.LOSS, curve, tmp_path / "loss.svg")
    assert {"tokens seen", "loss (nats per token)", "training", "validation"} <= {*texts(tmp_path / "loss.svg")}
    assert lines(tmp_path / "loss.svg", figure.BLUE) == [4]
    assert lines(tmp_path / "loss.svg", figure.ORANGE) == [2]


@pytest.mark.parametrize(
    ("kind", "label", "points"),
    [
        (curves.PERPLEXITY, "perplexity (exp of nats per token)", 2),
        (curves.LEARNING_RATE, "learning rate (per update)", 4),
        (curves.GRAD_NORM, "gradient norm (L2, before clipping)", 4),
    ],
)
def test_the_other_curves_of_training(curve: Path, tmp_path: Path, kind: curves.Curve, label: str, points: int) -> None:
    curves.draw_curve(kind, curve, tmp_path / "curve.svg")
    assert {"tokens seen", label} <= {*texts(tmp_path / "curve.svg")}
    drawn = lines(tmp_path / "curve.svg", figure.BLUE) + lines(tmp_path / "curve.svg", figure.ORANGE)
    assert drawn == [points]


def test_no_label_is_a_formula(curve: Path, tmp_path: Path) -> None:
    """Logarithmic axes label themselves with TeX, which is not typeset here because tokens hold dollar signs."""
    draw_all.draw_all(tmp_path, (".svg",))
    for path in tmp_path.glob("*.svg"):
        assert not any("mathdefault" in text or "\\" in text for text in texts(path)), path


def test_an_accuracy_curve_has_a_line_for_each_seed_and_one_legend(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text(ACCURACY)
    curves.draw_curve(curves.ACCURACY, tmp_path / "curve.csv", tmp_path / "accuracy.svg")
    shown = texts(tmp_path / "accuracy.svg")
    assert "examples seen" in shown and "accuracy (fraction of messages)" in shown
    assert shown.count("training") == shown.count("validation") == 1
    assert lines(tmp_path / "accuracy.svg", figure.BLUE) == [2, 2]
    assert lines(tmp_path / "accuracy.svg", figure.ORANGE) == [2, 2]


def test_a_confusion_matrix_has_a_row_for_each_actual_label(tmp_path: Path) -> None:
    scores.confusion_matrix([[90, 10], [1, 49]], ("ham", "spam"), tmp_path / "confusion.svg")
    shown = texts(tmp_path / "confusion.svg")
    assert {"predicted label", "actual label", "ham", "spam"} <= {*shown}
    cells = [text for text in shown if text in ("90", "10", "1", "49") or text.endswith(".0%")]
    assert cells == ["90", "90.0%", "10", "10.0%", "1", "2.0%", "49", "98.0%"]
    scores.confusion_matrix([[0, 0], [0, 5]], ("ham", "spam"), tmp_path / "confusion.svg")  # a label that never occurs
    with pytest.raises(ValueError, match="2 rows of 2"):
        scores.confusion_matrix([[1, 2]], ("ham", "spam"), tmp_path / "wrong.svg")


def test_a_confusion_matrix_of_many_labels_still_names_them(tmp_path: Path) -> None:
    labels = [f"label {i}" for i in range(30)]
    counts = [[i == j for j in range(30)] for i in range(30)]
    scores.confusion_matrix(counts, labels, tmp_path / "confusion.svg")
    shown = texts(tmp_path / "confusion.svg")
    assert all(shown.count(label) == 2 for label in labels)
    assert "100.0%" not in shown


def rates(seed: int, name: str, columns: tuple[str, str], points: list[tuple[float, float]]) -> list[dict]:
    return [{"seed": seed, "class": name, **dict(zip(columns, point, strict=True))} for point in points]


def test_curves_have_a_line_for_each_class_and_seed(tmp_path: Path) -> None:
    columns = ("false_positive_rate", "true_positive_rate")
    points = [(0.0, 0.0), (0.0, 0.5), (1.0, 1.0)]
    rows = [row for seed in (1, 2) for name in ("a", "b") for row in rates(seed, name, columns, points)]
    scores.roc_curves(rows, {"a": 0.75, "b": 0.5}, tmp_path / "roc.svg")
    shown = texts(tmp_path / "roc.svg")
    assert [text for text in shown if text.startswith("AUC")] == ["AUC 0.750 a", "AUC 0.500 b"]
    assert {"chance", "false positive rate", "true positive rate (recall)"} <= {*shown}
    assert lines(tmp_path / "roc.svg", figure.BLUE) == lines(tmp_path / "roc.svg", figure.ORANGE) == [3, 3]
    # A step goes along the recall first, at the precision of its end: a corner more between two points.
    rows = rates(1, "_b", ("recall", "precision"), [(0.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
    scores.precision_recall_curves(rows, {"_b": 0.8}, tmp_path / "curve.svg")
    shown = texts(tmp_path / "curve.svg")
    assert {"AP 0.800 _b", "recall", "precision"} <= {*shown} and "chance" not in shown


def test_of_many_classes_the_curves_of_least_area_are_named(tmp_path: Path) -> None:
    columns = ("recall", "precision")
    areas = {f"class {i}": 0.9 - i / 100 for i in range(9)}
    rows = [row for name in areas for row in rates(1, name, columns, [(0.0, 1.0), (1.0, 0.5)])]
    scores.precision_recall_curves(rows, areas, tmp_path / "curve.svg")
    shown = texts(tmp_path / "curve.svg")
    assert sorted(text for text in shown if text.startswith("AP")) == [
        f"AP {0.9 - i / 100:.3f} class {i}" for i in (8, 7, 6, 5)
    ]
    assert shown.count("5 more") == 1


def test_reliability_has_a_point_for_each_bin(tmp_path: Path) -> None:
    scores.reliability(BINS, 0.012, ("ham", "spam"), tmp_path / "reliability.svg")
    shown = texts(tmp_path / "reliability.svg")
    assert {"predicted probability of spam", "messages that are spam (fraction)", "the classifier (ECE 1.2%)"} <= {
        *shown
    }
    assert lines(tmp_path / "reliability.svg", figure.BLUE) == [len(BINS)]


def test_a_score_histogram_leaves_out_what_the_judge_did_not_score(tmp_path: Path) -> None:
    scores.score_histogram([0, 55.0, None, 100], {"echo": 31.04}, tmp_path / "scores.svg")
    assert {"score (0 to 100)", "responses (count)", "mean 51.7", "echo 31.0"} <= {*texts(tmp_path / "scores.svg")}
    scores.score_histogram([None], {}, tmp_path / "none.svg")
    assert not any("mean" in text for text in texts(tmp_path / "none.svg"))


def test_attention_is_shown_weight_by_weight(tmp_path: Path) -> None:
    """The pixels of the sheet that the SVG holds: each head where it belongs, the colours those of the scale."""
    import matplotlib

    L, H, T = 2, 3, len(TOKENS)
    weights = attention(L, H, T)
    text.attention_heatmaps(weights, TOKENS, tmp_path / "attention.svg")
    shown = texts(tmp_path / "attention.svg")
    assert {"head 3", "layer 2", "attention weight", "·lamp", "$x$", "é"} <= {*shown}
    assert shown.count(".") == L + H
    pictures = ElementTree.parse(tmp_path / "attention.svg").iter(f"{SVG}image")
    sheets = [Image.open(io.BytesIO(base64.b64decode(p.get(f"{XLINK}href").partition(",")[2]))) for p in pictures]
    sheet = next(np.asarray(s.convert("RGBA")) for s in sheets if s.size[0] == H * (T + 1) - 1)
    if "matrix(1 0 0 -1" in (tmp_path / "attention.svg").read_text():  # kept upside down
        sheet = sheet[::-1]
    for layer, head, t, s in ((0, 0, 0, 0), (1, 2, 5, 3), (0, 1, 4, 4), (1, 0, 3, 1)):
        expected = matplotlib.colormaps["cividis"](weights[layer, head, t, s] ** 0.5, bytes=True)
        np.testing.assert_allclose(sheet[layer * (T + 1) + t, head * (T + 1) + s].astype(int), expected, atol=2)
    assert sheet[0, 1, 3] == 0  # a token does not look ahead


def test_attention_of_a_large_model_is_one_readable_sheet(tmp_path: Path) -> None:
    text.attention_heatmaps(attention(12, 12, 40), ["token"] * 40, tmp_path / "attention.svg")
    shown = texts(tmp_path / "attention.svg")
    assert {"layer 12", "head 12"} <= {*shown} and "token" not in shown
    assert (tmp_path / "attention.svg").stat().st_size < 1_000_000


def test_temperatures_and_losses_have_a_bar_for_each_token(tmp_path: Path) -> None:
    text.temperature_effect(["·lamp", "."], {0.5: [0.9, 0.1], 2.0: [0.6, 0.3]}, tmp_path / "temperature.svg")
    assert {"·lamp", ".", "temperature 0.5", "temperature 2", "probability"} <= {*texts(tmp_path / "temperature.svg")}
    text.token_loss(["a", "$b$"], [None, 2.5], tmp_path / "loss.svg")
    assert {"a", "$b$", "loss (nats)"} <= {*texts(tmp_path / "loss.svg")}


def test_a_character_that_the_font_lacks_is_a_box_and_no_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.token_loss(["漢", "é"], [None, 2.5], tmp_path / "loss.png")
        text.token_loss(["漢", "é"], [None, 2.5], tmp_path / "loss.svg")
    assert {"□", "é"} <= {*texts(tmp_path / "loss.svg")}


def test_the_same_input_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    draw_all.draw_all(here)
    command = [sys.executable, "-m", "tests.tracking.draw_all", there]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    figures = sorted(path for path in here.iterdir() if path.suffix != ".csv")
    drawn = {"draw_curve" if path.stem.endswith("_curve") else path.stem for path in figures}
    modules = (curves, scores, text)
    own = {
        name for module in modules for name, value in vars(module).items()
        if isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }  # fmt: skip
    assert drawn == own
    for path in figures:
        assert path.read_bytes() == (there / path.name).read_bytes(), path
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_dark_figures_equal_those_that_matplotlib_draws_in_dark_colors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light, drawn = tmp_path / "light", tmp_path / "dark"
    draw_all.draw_all(light, (".svg",))
    exchanged = {
        style: figure.DARK.get(value, value) for style, value in figure.STYLE.items() if isinstance(value, str)
    }
    monkeypatch.setattr(figure, "STYLE", figure.STYLE | exchanged)
    for name in ("BLUE", "ORANGE", "GREEN"):
        monkeypatch.setattr(figure, name, figure.DARK[getattr(figure, name)])
    draw_all.draw_all(drawn, (".svg",))
    figures = sorted(light.glob("*.svg"))
    assert figures
    for path in figures:
        assert without_ids(figure.dark(path.read_text())) == without_ids((drawn / path.name).read_text()), path.name


def without_ids(svg: str) -> str:
    """Some ids are hashes of colors."""
    return re.sub(r'(?<=id=")[^"]*|(?<=href="#)[^"]*|(?<=url\(#)[^)]*', "", svg)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("tokens,train_loss\n1,2\n", "val_loss.*found tokens, train_loss"),
        ("when,train_loss,val_loss\n1,2,3\n", "one of tokens"),
        ("tokens,train_loss,val_loss\n1,2,three\n", "three"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_named_and_nothing_is_left(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        curves.draw_curve(curves.LOSS, tmp_path / "curve.csv", tmp_path / "loss.svg")
    assert "curve.csv" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.csv"]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        scores.score_histogram([1], {}, tmp_path / "scores.pdf")
