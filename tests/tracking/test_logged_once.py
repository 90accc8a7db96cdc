"""Each metric is logged once: by stages that follow each other, by one that is resumed, and by a later sync."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2core.config.mlflow import Mlflow
from gpt2core.params import Params
from gpt2core.tracking import track_stage
from gpt2core.tracking.sync import sync

PARAMS = Params.model_construct(seed=7, mlflow=Mlflow(log_models=True, register=False))
RESULTS: dict[str, dict[str, Any]] = {
    "tokenize": {"vocab_size": 512},
    "pretrain": {"val_loss": 1.25, "train_loss": 1.125, "parameters": 7},
    "finetune-classify": {"test_accuracy": 0.875, "test_accuracy_by_seed": {"1": 0.875}},
    "finetune-instruct": {"val_loss": 0.5},
    "llm-judge-eval": {"mean_score": 61.5, "base_score": 8.0},
}
CURVE = [(step, 2.25 - step / 4) for step in range(1, 5)]  # the last validation loss is the result


def points(root: Path) -> list[tuple[str, str, int, float]]:
    """Return run, key, step, and value of every metric in the store, without those of the machine."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        query = "SELECT run_uuid, key, step, value FROM metrics WHERE key NOT LIKE 'system/%' ORDER BY step"
        return database.execute(query).fetchall()


def repeated(root: Path) -> list[tuple[str, str, int]]:
    """Return run, key, and step of each point that is in the store more than once."""
    places = [row[:3] for row in points(root)]
    return sorted({place for place in places if places.count(place) > 1})


def parent_points(root: Path) -> list[tuple[str, float]]:
    """Return key and value of every metric of the one parent run, without durations."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        children = {row[0] for row in database.execute("SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId'")}
    rows = [row for row in points(root) if row[0] not in children]
    assert len({row[0] for row in rows}) == 1
    return sorted((key, value) for _, key, _, value in rows if not key.endswith(".duration_s"))


def write_results(root: Path, stage: str, results: Mapping[str, Any], curve: str = "") -> None:
    """Write a stage's files, as the stage does."""
    name = stage.replace("-", "_")
    (root / "metrics/plots").mkdir(parents=True, exist_ok=True)
    (root / f"metrics/{name}.json").write_text(json.dumps(results))
    if curve:
        (root / f"metrics/plots/{name}.csv").write_text(curve)


def lock_stage(root: Path, stage: str) -> None:
    """Write a stage to dvc.lock, as DVC does after it."""
    lock = root / "dvc.lock"
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
    path = f"metrics/{stage.replace('-', '_')}.json"
    md5 = hashlib.md5((root / path).read_bytes()).hexdigest()
    stages[stage] = {"cmd": "x", "params": {"params.yaml": {"seed": 7}}, "outs": [{"path": path, "md5": md5}]}
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


@pytest.fixture
def project(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_EXP_NAME", "bold-lamb")
    (root / "params.yaml").write_text("seed: 7\n")
    return root


def test_a_pipeline_logs_each_metric_once(project: Path, models_dir: Path) -> None:
    models = {"finetune-classify": "classifier", "finetune-instruct": "instruct"}
    for stage, results in RESULTS.items():
        with track_stage(stage, PARAMS) as run:
            for step, loss in CURVE:
                run.log_metrics({"val_loss": loss, "lr": 0.1}, step)
            write_results(project, stage, results)
            run.finish(results)
            if stage in models:
                run.log_model(models[stage], models_dir / models[stage], results)
        lock_stage(project, stage)
    assert parent_points(project) == [
        ("finetune-classify.test_accuracy", 0.875),
        ("finetune-classify.test_accuracy_by_seed.1", 0.875),
        ("finetune-instruct.val_loss", 0.5),
        ("llm-judge-eval.base_score", 8.0),
        ("llm-judge-eval.mean_score", 61.5),
        ("pretrain.parameters", 7.0),
        ("pretrain.train_loss", 1.125),
        ("pretrain.val_loss", 1.25),
        ("tokenize.vocab_size", 512.0),
    ]
    assert repeated(project) == []
    losses = sorted(row[2:] for row in points(project) if row[1] == "val_loss")
    results = [1.25, 0.5]  # those of pretrain and finetune-instruct are the last points of their curves
    assert losses == sorted([*CURVE[:3] * 5, *[CURVE[3]] * 3, *((4, value) for value in results)])
    before = points(project)
    assert [synced.done for synced in sync(project)] == [[]]
    assert points(project) == before


def test_a_stage_that_repeats_steps_logs_each_once(project: Path) -> None:
    run_file = project / "run.json"
    with pytest.raises(KeyboardInterrupt), track_stage("pretrain", PARAMS, run_file=run_file) as run:
        for step, loss in CURVE[:3]:
            run.log_metrics({"val_loss": loss}, step)
        raise KeyboardInterrupt
    time.sleep(0.01)  # MLflow takes rows of the same millisecond as one
    with track_stage("pretrain", PARAMS, run_file=run_file) as run:
        for step, loss in CURVE[1:]:  # from the checkpoint after step 1
            run.log_metrics({"val_loss": loss}, step)
        run.finish(RESULTS["pretrain"])
    assert [row[2:] for row in points(project) if row[1] == "val_loss"] == CURVE
    assert sum(key == "pretrain.val_loss" for _, key, *_ in points(project)) == 1


def test_a_sync_logs_a_result_once_that_is_also_the_name_of_a_curve(project: Path) -> None:
    curve = "step,val_loss\n" + "".join(f"{step},{loss}\n" for step, loss in CURVE)
    for results in ({"val_loss": 1.25}, {"val_loss": 1.5}):  # the curve's last value, and another
        write_results(project, "pretrain", results, curve)
        lock_stage(project, "pretrain")
        (synced,) = sync(project)
        assert "a run of its own" in synced.done
        before = points(project)
        assert [synced.done for synced in sync(project)] == [[]]
        assert points(project) == before
    assert repeated(project) == []
    results = [value for _, key, _, value in points(project) if key == "pretrain.val_loss"]
    assert sorted(results) == [1.25, 1.5], "one in the parent of each"


def test_a_synced_run_gets_its_params_tags_and_metrics_in_one_request(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request takes MLflow 10 ms: with thousands of experiments, three per run are minutes."""
    from mlflow import MlflowClient

    requests: list[str] = []
    log_batch = MlflowClient.log_batch

    def spy(self: MlflowClient, run_id: str, *rows: Any, **more: Any) -> None:
        requests.append(run_id)
        log_batch(self, run_id, *rows, **more)

    for stage, results in RESULTS.items():
        write_results(root, stage, results)
        lock_stage(root, stage)
    (root / "params.yaml").write_text("seed: 7\n")
    monkeypatch.setattr(MlflowClient, "log_batch", spy)
    (synced,) = sync(root)
    assert len(requests) == len(set(requests)) == 1 + len(RESULTS)
    assert ("pretrain.val_loss", 1.25) in parent_points(root)
    run = MlflowClient(f"sqlite:///{root / 'mlflow.db'}").get_run(synced.run_id)
    assert run.data.params["seed"] == "7" and run.data.tags["gpt2core.results"]
