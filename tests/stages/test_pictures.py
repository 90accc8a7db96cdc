"""The pictures of the model's inside: drawn for a tracked run, not computed for another, and no reason to fail."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from gpt2core.corpus.shards import write_shard
from gpt2core.corpus.splits import Piece
from gpt2core.params import read_values
from gpt2core.report import inspection_figures
from gpt2core.tokenizer.train import train_bpe
from gpt2core.tracking import store
from stages import pretrain

ROOT = Path(__file__).parents[2]
TALES = ["The keeper of the harbor took a lamp to the tower, and the lamp was lit. " * 20] * 4
PLOTS = {
    "pretrain_loss.svg", "pretrain_perplexity.svg", "pretrain_learning_rate.svg", "pretrain_grad_norm.svg",
    "pretrain_attention.svg", "pretrain_temperature.svg",
}  # fmt: skip
OF_THE_INSIDE = {"pretrain_attention.svg", "pretrain_temperature.svg"}


@pytest.fixture
def inspections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what the stage inspects."""
    inspected: list[Any] = []
    real = inspection_figures.inspect_language_model

    def inspect(*arguments: Any) -> Any:
        inspected.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(inspection_figures, "inspect_language_model", inspect)
    return inspected


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two steps to train."""
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yaml = YAML()
    params = read_values(ROOT / "profiles/tiny.yaml")
    params["data"]["corpus"] = "own/tales.txt"
    params["pretrain"] |= {"context": 32, "max_steps": 2, "warmup_steps": 1, "eval_interval_steps": 1}
    yaml.dump(params, tmp_path / "params.yaml")
    tokens = tmp_path / "data/tokens"
    tokens.mkdir(parents=True)
    tokenizer = train_bpe(TALES, 270)
    for name in ("train", "val"):
        write_shard(tokens / f"{name}.bin", (Piece(text, True) for text in TALES), tokenizer)
    tokenizer.save(tokens)
    return tmp_path


@pytest.fixture
def tracked(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPT2CORE_TRACKING", "on")
    store.prepare_mlflow()
    return project


def drawn(root: Path) -> set[str]:
    """Return the names of all pictures under a folder."""
    return {path.name for path in root.rglob("*.svg")}


def written(root: Path) -> dict[str, bytes]:
    """Return the content of each output."""
    paths = [path for top in ("models", "metrics") for path in (root / top).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_a_stage_that_is_not_tracked_inspects_and_draws_nothing(project: Path, inspections: list[Any]) -> None:
    pretrain.main()
    assert inspections == []
    assert drawn(project) == set()


def test_a_tracked_stage_inspects_once_and_logs_every_picture(tracked: Path, inspections: list[Any]) -> None:
    pretrain.main()
    assert len(inspections) == 1
    assert drawn(tracked / "mlartifacts") == PLOTS
    assert drawn(tracked / "metrics") == set()
    with_tracking = written(tracked)
    for name in ("models", "metrics", ".checkpoints"):
        shutil.rmtree(tracked / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2CORE_TRACKING", "off")
        pretrain.main()
    assert written(tracked) == with_tracking


def test_an_inspection_that_fails_costs_two_pictures(
    tracked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(inspection_figures, "inspect_language_model", fail)
    pretrain.main()
    said = capsys.readouterr().err
    for name in OF_THE_INSIDE:
        assert f"warning: stage pretrain: plots/{name} was not drawn (MemoryError: no room)" in said
    assert drawn(tracked / "mlartifacts") == PLOTS - OF_THE_INSIDE
    assert (tracked / "metrics/pretrain.json").exists()
