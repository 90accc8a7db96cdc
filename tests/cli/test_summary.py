"""`gpt2core summary` where some stages have not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpt2core.cli.summary import summary
from gpt2core.errors import UserError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "metrics").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_without_results_the_remedy_is_named(project: Path) -> None:
    with pytest.raises(
        UserError, match="^metrics/: no stage has written its results yet; run the pipeline: dvc repro$"
    ):
        CliRunner().invoke(summary, [], catch_exceptions=False)


def test_what_exists_is_shown_and_the_rest_is_named(project: Path) -> None:
    write(project / "metrics/pretrain.json", {"val_loss": 1.25, "val_perplexity": 3.49})
    write(project / "metrics/samples.json", [{"text": "Once."}, {"text": "A tale."}])
    shown = CliRunner().invoke(summary, [], catch_exceptions=False).output
    assert "1.250" in shown and "A text by models/pretrained\nA tale.\n" in shown and "Once." not in shown
    assert "\nNot run yet: finetune-classify, finetune-instruct, llm-judge-eval. Run them: dvc repro\n" in shown
    assert "Messages, by" not in shown and "answered by" not in shown

    answers = [{"instruction": f"Say {n}.", "input": n and "now", "response": f"{n}!", "x": 1} for n in ("", "b", "c")]
    write(project / "data/responses/test.json", answers)
    found = json.loads(CliRunner().invoke(summary, ["--json"], catch_exceptions=False).output)
    assert found["missing"] == ["finetune-classify", "finetune-instruct", "llm-judge-eval"]
    assert (found["text"], found["messages"], found["strongest_baseline"]) == ("A tale.", [], None)
    assert [row["response"] for row in found["answers"]] == ["!", "b!"]
    shown = CliRunner().invoke(summary, [], catch_exceptions=False).output
    assert "> Say .\n!\n\n> Say b.\n> now\nb!\n\nNot run yet" in shown
