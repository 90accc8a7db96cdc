"""The spam benchmark: a row of each recipe, whose figures are those of its seeds."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from benchmarks import spam
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.model import GPT
from tests.small import config_and_tokenizer


def test_each_recipe_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, tokenizer = config_and_tokenizer(n_positions=64)
    save_model(tmp_path / "base", GPT(config), tokenizer)
    (tmp_path / "sms-spam-collection").mkdir()
    lines = [f"{label}\t{word} number {n}\n" for n in range(30) for label, word in (("ham", "lamp"), ("spam", "WIN"))]
    (tmp_path / "sms-spam-collection" / "SMSSpamCollection").write_text("".join(lines))

    sets = ["--set", "epochs=1,20", "--set", "lr=0.01", "--set", "warmup_steps=1"]
    spam.main([str(tmp_path), "--base", str(tmp_path / "base"), "--seeds", "1", "2", "3", *sets])

    printed = capsys.readouterr().out
    assert "42 messages to train on, 6 to validate, 12 to test" in printed
    rows = [line for line in printed.splitlines() if "±" in line]
    assert [line.split("  ")[0] for line in rows] == [
        "TF-IDF of words", "TF-IDF of characters", *(f"epochs={n} lr=0.01 warmup_steps=1" for n in (1, 20))
    ]  # fmt: skip
    for line in rows:
        mean, sd, scores = re.search(r"([\d.]+) ± ([\d.]+) \(.*\)  ([\d., ]+?)(?:  |$)", line).groups()  # type: ignore[union-attr]
        percents = [float(score) for score in scores.split(", ")]
        assert len(percents) == 3
        assert float(mean) == pytest.approx(statistics.mean(percents), abs=0.1)
        assert float(sd) == pytest.approx(statistics.stdev(percents), abs=0.15)
    assert "100.0, 100.0, 100.0" in rows[-1]  # one word tells the class
