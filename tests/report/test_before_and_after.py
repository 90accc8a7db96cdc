"""The report's table of an instruction tuning, before and after, and its answers."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2core.report.pipeline import MAX_ANSWERS, _instructions

FOUND = {
    "val_loss": 0.5, "before_val_loss": 7.0, "test_loss": 0.7, "before_test_loss": 7.25, "test_perplexity": 2.0138,
    "before_test_perplexity": 1408.1,
}  # fmt: skip
JUDGED = {"judge": "chrf", "mean_score": 61.4, "base_score": 11.1}


def test_every_figure_stands_beside_its_own_from_before(tmp_path: Path) -> None:
    section = _instructions(tmp_path, {"finetune_instruct": FOUND, "llm_judge_eval": JUDGED})
    assert section and [tuple(row) for row in section.tables[0].rows] == [
        ("validation loss, nats per token", "7.000", "0.500"),
        ("loss on the test responses, nats per token", "7.250", "0.700"),
        ("perplexity of the test responses", "1408.10", "2.01"),
        ("mean score by chrf, 0 to 100", "11.1", "61.4"),
    ]


def test_what_older_results_lack_is_left_out(tmp_path: Path) -> None:
    section = _instructions(tmp_path, {"finetune_instruct": {"val_loss": 0.5, "before_val_loss": 7.0}})
    assert section and len(section.tables[0].rows) == 1


def test_ten_answers_with_both_scores(tmp_path: Path) -> None:
    (tmp_path / "data/responses").mkdir(parents=True)
    (tmp_path / "metrics/plots").mkdir(parents=True)
    entry = {"instruction": "Sort.", "input": "", "output": "a b", "response": "a b", "base_response": "b"}
    (tmp_path / "data/responses/test.json").write_text(json.dumps([entry] * 12))
    scores = "index,score,base,echo,nearest\n0,100.0,12.5,1,2\n1,,0.0,1,2\n"
    (tmp_path / "metrics/plots/judge_scores.csv").write_text(scores)
    section = _instructions(tmp_path, {"finetune_instruct": FOUND})
    assert section and len(section.answers) == MAX_ANSWERS == 10
    given = [(answer["score"], answer["base_score"]) for answer in section.answers[:3]]
    assert given == [(100.0, 12.5), (None, 0.0), (None, None)]
