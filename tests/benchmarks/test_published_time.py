"""The time of the published runs: what is extrapolated, and from what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import growth, published


@pytest.mark.parametrize(
    ("stage", "metrics", "n_steps"),
    [
        ("finetune_classify", {"train_messages": 1045}, 5 * 131),  # 130 full batches of 8 and a smaller one
        ("finetune_instruct", {"train_entries": 935}, 2 * 117),
    ],
)
def test_the_whole_run_has_all_epochs(tmp_path: Path, stage: str, metrics: dict[str, int], n_steps: int) -> None:
    growth.write_params(tmp_path, "gpt2-124m", **{f"{stage}.max_steps": 2})
    (tmp_path / "metrics").mkdir()
    (tmp_path / f"metrics/{stage}.json").write_text(json.dumps(metrics))
    assert published.whole_run(tmp_path, stage) == n_steps


def test_a_stage_is_run_with_few_steps_and_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 3 s here, and everything else 100 s."""

    def run(folder: Path, *command: str) -> dict[str, float]:
        if command[0] == "finetune_instruct":
            max_steps = published.load_params(folder / "params.yaml").finetune_instruct.max_steps
            (folder / "metrics").mkdir(exist_ok=True)
            (folder / "metrics/finetune_instruct.json").write_text('{"train_entries": 935}')
            return {"seconds": 100.0 + 3.0 * max_steps, "peak_bytes": 2e9}
        return {"seconds": 1.0, "peak_bytes": 1e9}

    def checkpoint(size: str, folder: Path, bpe: Path) -> Path:
        (folder / "openai").mkdir()
        return folder / "openai"

    monkeypatch.setattr(published, "run", run)
    monkeypatch.setattr(published.machine, "random_checkpoint", checkpoint)
    (row,) = published.measure("124M", tmp_path, ["finetune_instruct"], 5)
    assert row == published.Row("finetune_instruct", 3.0, 100.0, 234, 2e9)
    assert "| 13 min | 2.0 GB |" in row.line()
