"""The table of judges beside GPT-4, on a small mirror whose figures are known, and on the real one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import judges

MIRROR = Path(os.environ.get("GPT2CORE_MIRROR") or Path(__file__).parents[2] / "../shared/mirror")


def test_a_list_that_lost_a_score_is_not_aligned_by_guessing(tmp_path: Path) -> None:
    for model, n in (("1", 100), ("2", 99)):
        (tmp_path / f"scores-x-model-{model}-response.json").write_text(json.dumps(list(range(n))))
    assert judges.read_scores(tmp_path, "x") == [*map(float, range(100)), *[None] * 100]


def test_equal_scores_agree_and_missing_ones_have_no_row() -> None:
    gpt4 = [float(i % 7) for i in range(200)]
    rows = judges.table({"same": gpt4, "half": [*gpt4[:100], *[None] * 100]}, gpt4)[2:]
    assert [row.split(" | ")[:6] for row in rows] == [
        ["| same", "model 1", "100", "1.000", "1.000", "1.000"],
        ["| same", "model 2", "100", "1.000", "1.000", "1.000"],
        ["| same", "both", "200", "1.000", "1.000", "1.000"],
        ["| half", "model 1", "100", "1.000", "1.000", "1.000"],
    ]


def test_the_table_in_the_docs_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (MIRROR / "judge-examples").is_dir():
        pytest.skip("no judge-examples: set GPT2CORE_MIRROR to a mirror that holds them")
    monkeypatch.setattr("sys.argv", ["judges", str(MIRROR)])
    judges.main()
    shown = capsys.readouterr().out
    assert shown in (Path(__file__).parents[2] / "docs/judges.md").read_text(encoding="utf-8")
