"""Figures: what they show, that they repeat byte for byte, and that bad input is named."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from gpt2core.errors import UserError
from gpt2core.track import plots

LOSS = "tokens,step,train_loss,val_loss\n1000,1,5.5,\n2000,2,4.25,4.5\n3000,3,3.5,\n4000,4,3.25,3.75\n"
ACCURACY = (
    "seed,epoch,examples,train_accuracy,val_accuracy\n"
    "1,1,100,0.8,0.7\n1,2,200,0.9,0.8\n2,1,100,0.75,0.7\n2,2,200,0.95,0.85\n"
)
SVG = "{http://www.w3.org/2000/svg}"


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


def test_a_loss_curve_names_its_axes_and_links_evaluations_over_empty_cells(tmp_path):
    (tmp_path / "curve.csv").write_text(LOSS)
    plots.loss_curve(tmp_path / "curve.csv", tmp_path / "loss.svg")
    assert {"tokens seen", "loss (nats per token)", "training", "validation"} <= {*texts(tmp_path / "loss.svg")}
    assert lines(tmp_path / "loss.svg", plots.BLUE) == [4]
    assert lines(tmp_path / "loss.svg", plots.ORANGE) == [2]


def test_an_accuracy_curve_has_a_line_for_each_seed_and_one_legend(tmp_path):
    (tmp_path / "curve.csv").write_text(ACCURACY)
    plots.accuracy_curve(tmp_path / "curve.csv", tmp_path / "accuracy.svg")
    shown = texts(tmp_path / "accuracy.svg")
    assert "examples seen" in shown and "accuracy (fraction of messages)" in shown
    assert shown.count("training") == shown.count("validation") == 1
    assert lines(tmp_path / "accuracy.svg", plots.BLUE) == [2, 2]
    assert lines(tmp_path / "accuracy.svg", plots.ORANGE) == [2, 2]


def test_a_confusion_matrix_has_a_row_for_each_actual_label(tmp_path):
    plots.confusion_matrix([[90, 10], [1, 49]], ("ham", "spam"), tmp_path / "confusion.svg")
    shown = texts(tmp_path / "confusion.svg")
    assert {"predicted label", "actual label", "ham", "spam"} <= {*shown}
    cells = [text for text in shown if text in ("90", "10", "1", "49") or text.endswith(".0%")]
    assert cells == ["90", "90.0%", "10", "10.0%", "1", "2.0%", "49", "98.0%"]
    plots.confusion_matrix([[0, 0], [0, 5]], ("ham", "spam"), tmp_path / "confusion.svg")  # a label that never occurs
    with pytest.raises(ValueError, match="2 rows of 2"):
        plots.confusion_matrix([[1, 2]], ("ham", "spam"), tmp_path / "wrong.svg")


def test_a_score_histogram_leaves_out_what_the_judge_did_not_score(tmp_path):
    plots.score_histogram([0, 55.0, None, 100], tmp_path / "scores.svg")
    assert {"score (0 to 100)", "responses (count)", "mean 51.7"} <= {*texts(tmp_path / "scores.svg")}
    plots.score_histogram([None], tmp_path / "none.svg")
    assert not any("mean" in text for text in texts(tmp_path / "none.svg"))


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_input_gives_the_same_bytes_in_another_process(tmp_path, suffix):
    (tmp_path / "curve.csv").write_text(LOSS)
    here, there = tmp_path / f"here.{suffix}", tmp_path / f"there.{suffix}"
    plots.loss_curve(tmp_path / "curve.csv", here)
    code = f"from gpt2core.track import plots; plots.loss_curve({str(tmp_path / 'curve.csv')!r}, {str(there)!r})"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": root}, timeout=60)
    assert here.read_bytes() == there.read_bytes()
    assert here.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("tokens,train_loss\n1,2\n", "val_loss.*found tokens, train_loss"),
        ("when,train_loss,val_loss\n1,2,3\n", "one of tokens"),
        ("tokens,train_loss,val_loss\n1,2,three\n", "three"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_named_and_nothing_is_left(tmp_path, text, message):
    (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        plots.loss_curve(tmp_path / "curve.csv", tmp_path / "loss.svg")
    assert "curve.csv" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.csv"]


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        plots.score_histogram([1], tmp_path / "scores.pdf")
