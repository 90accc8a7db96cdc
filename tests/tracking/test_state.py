"""Which of the numbers in metrics/ belong to the params and to each other."""

from __future__ import annotations

import hashlib
import json

import pytest
import yaml

from gpt2core.tracking.state import read_state

PARAMS = {"seed": 7, "one": {"x": 1}, "two": {"x": 2, "y": None}, "three": {"x": 3}}


class Project:
    """one -> data/one -> two -> data/two -> three; `four` stands beside them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"params.yaml": yaml.safe_dump({**PARAMS, "four": {"x": 4}}).encode()}
        self.lock: dict = {"schema": "2.0", "stages": {}}
        for name, deps in (("one", ["gpt2core"]), ("two", ["data/one/part"]), ("three", ["data/two"]), ("four", [])):
            metrics = json.dumps({"loss": len(name), "by": {"seed": 0.5}, "what": "text"}).encode()
            self.files[f"metrics/{name}.json"] = metrics
            self.lock["stages"][name] = {
                "cmd": "x",
                "deps": [{"path": path, "md5": path} for path in deps],
                "params": {"params.yaml": {name: PARAMS.get(name, {"x": 4})}},
                "outs": [
                    {"path": f"data/{name}", "md5": f"data/{name}"},
                    {"path": f"metrics/{name}.json", "md5": hashlib.md5(metrics).hexdigest()},
                ],
            }

    def read(self, path: str) -> bytes | None:
        return yaml.safe_dump(self.lock).encode() if path == "dvc.lock" else self.files.get(path)

    def stages(self, running: str | None = None) -> set[str]:
        return set(read_state(self.read, running).metrics)


@pytest.fixture
def project() -> Project:
    return Project()


def test_the_table_has_the_numbers_of_every_stage(project: Project) -> None:
    table = read_state(project.read).table
    assert table == {f"{n}.{k}": v for n in ("one", "two", "three", "four") for k, v in
                     (("loss", float(len(n))), ("by.seed", 0.5))}  # fmt: skip


@pytest.mark.parametrize("key", ["x", "y", "z"])
def test_other_params_than_it_ran_with_leave_out_a_stage_and_what_comes_after_it(project: Project, key: str) -> None:
    changed = {**PARAMS, "two": {**PARAMS["two"], key: 9}, "four": {"x": 4}}
    project.files["params.yaml"] = yaml.safe_dump(changed).encode()
    assert project.stages() == {"one", "four"}


def test_an_input_that_was_made_anew_leaves_out_what_was_made_of_the_old(project: Project) -> None:
    project.lock["stages"]["two"]["outs"][0]["md5"] = "another"
    assert project.stages() == {"one", "two", "four"}


@pytest.mark.parametrize("content", [None, b'{"loss": 9}', b"{"])
def test_metrics_that_are_not_those_of_the_lock_belong_to_nothing(project: Project, content: bytes | None) -> None:
    project.files["metrics/two.json"] = content
    assert project.stages() == {"one", "four"}


def test_a_stage_that_just_ended_is_not_in_the_lock_yet(project: Project) -> None:
    project.files["metrics/two.json"] = b'{"loss": 9}'
    project.files["params.yaml"] = yaml.safe_dump({**PARAMS, "two": {"x": 8}, "four": {"x": 4}}).encode()
    state = read_state(project.read, "two")
    assert set(state.metrics) == {"one", "two", "four"}, "three was made of what was there before"
    assert state.table["two.loss"] == 9
    del project.lock["stages"]["two"]
    assert "two" in project.stages("two"), "its first run"


def test_a_stage_that_came_out_the_same_spoils_nothing(project: Project) -> None:
    assert project.stages("two") == {"one", "two", "three", "four"}


def test_the_fingerprint_is_of_params_and_results(project: Project) -> None:
    first = read_state(project.read).fingerprint
    assert read_state(project.read, "three").fingerprint == first, "at the last stage's end as afterwards"
    project.lock["stages"]["three"]["cmd"] = "y"
    assert read_state(project.read).fingerprint == first
    project.files["metrics/four.json"] = b'{"loss": 4.0000001}'
    assert read_state(project.read, "four").fingerprint != first


def test_without_params_or_lock(project: Project) -> None:
    assert read_state({}.get) is None
    state = read_state({"params.yaml": b"seed: 1\n"}.get)
    assert (state.params, state.table) == ({"seed": 1}, {})
    assert read_state({"params.yaml": b"{", "dvc.lock": b"}"}.get) is None
