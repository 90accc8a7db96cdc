"""All benchmarks: each row has figures or a reason, records compare by ratio, and the table says so."""

from __future__ import annotations

import doctest
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import all as all_benchmarks
from benchmarks import decoders, default_step, machine, rows, train_step
from benchmarks.rows import CUDA, Group, Row
from benchmarks.train_step import Work
from gpt2core.model import GPT, GPTConfig

SPEED = Row("decode", "gpt2core", "peer", "tokens/s", at_least=1.2)
MEMORY = Row("memory", "gpt2core, memory", "peer, memory", "GB", at_most=0.5)
ROUNDS = {
    "gpt2core": [120.0, 150.0, 110.0],
    "peer": [100.0, 90.0, 200.0],
    "gpt2core, memory": [3.0],
    "peer, memory": [4],
}


def group(**changes: Any) -> Group:
    return Group(**{"name": "g", "rows": [SPEED, MEMORY], "measure": lambda: ROUNDS, **changes})


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """`main` sets the device for its worker processes."""
    before = os.environ.get("GPT2CORE_DEVICE")
    yield
    os.environ.pop("GPT2CORE_DEVICE", None)
    if before is not None:
        os.environ["GPT2CORE_DEVICE"] = before


def one_record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_a_record_has_medians_ratios_goals_and_all_rounds(tmp_path: Path) -> None:
    record = all_benchmarks.run([group()], tmp_path, "python -m benchmarks.all")
    speed, memory = record["rows"]
    assert (speed["ours_median"], speed["peer_median"], speed["ratio"], speed["is_met"]) == (120, 100, 1.2, True)
    assert (memory["ratio"], memory["is_met"]) == (0.75, False)
    assert record["rounds"] == {"g": ROUNDS}
    assert record["machine"].startswith(record["kind"]) and record["torch"] == torch.__version__
    assert record["command"] == "python -m benchmarks.all"
    assert one_record(tmp_path) == record
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d-\d{{4}}-{all_benchmarks.slug(record['kind'])}\.json", path.name)


def test_a_row_that_does_not_run_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> rows.Rounds:
        raise RuntimeError("no memory\nmore")

    vllm = Row("decode", "gpt2core", "vLLM bfloat16", "tokens/s")
    groups = [
        group(name="hardware", lacks="no bfloat16"),
        group(name="broken", measure=fails),
        group(name="peer", rows=[vllm, SPEED]),
    ]
    record = all_benchmarks.run(groups, tmp_path, "")
    assert [row["not_run"] for row in record["rows"]] == [
        "no bfloat16", "no bfloat16", "RuntimeError: no memory", "RuntimeError: no memory", "vllm not installed", ""
    ]  # fmt: skip
    assert record["rows"][4]["ours_median"] == 120 and "ratio" not in record["rows"][4]
    assert "Traceback" in capsys.readouterr().err
    table = all_benchmarks.table(record)
    assert table.count("not run: ") == 5
    assert "| vLLM bfloat16 " in table


def test_the_last_ratio_is_the_newest_of_the_same_kind_of_machine(tmp_path: Path) -> None:
    def write(name: str, kind: str, ratio: float | None) -> None:
        row = {"key": SPEED.key} | ({} if ratio is None else {"ratio": ratio})
        (tmp_path / f"{name}.json").write_text(json.dumps({"kind": kind, "rows": [row]}))

    here = machine.kind()
    write("2026-01-01-0000-a", here, 1.0)
    write("2026-01-02-0000-a", here, 2.0)
    write("2026-01-03-0000-a", here, None)  # not run that day
    write("2026-01-04-0000-a", "another machine", 4.0)
    (tmp_path / "seeds.json").write_text(json.dumps({"seeds": [1]}))  # another kind of record
    record = all_benchmarks.run([group()], tmp_path, "")
    assert [row["last_ratio"] for row in record["rows"]] == [2.0, None]
    assert all_benchmarks.run([group()], tmp_path, "")["rows"][0]["last_ratio"] == 1.2


@pytest.mark.parametrize(
    ("unit", "last", "cell"),
    [
        ("tokens/s", None, ""), ("tokens/s", 1.0, "1: better now"), ("tokens/s", 1.23, "1.23"),
        ("tokens/s", 1.5, "1.5: worse now"), ("GB", 1.0, "1: worse now"), ("s", 1.5, "1.5: better now"),
    ],
)  # fmt: skip
def test_a_change_is_named(unit: str, last: float | None, cell: str) -> None:
    assert all_benchmarks.last_cell({"ratio": 1.2, "last_ratio": last, "unit": unit}) == cell


def test_the_table(tmp_path: Path) -> None:
    title, empty, header, line, speed, memory = all_benchmarks.table(
        all_benchmarks.run([group()], tmp_path, "")
    ).splitlines()
    assert machine.description() in title and not empty
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, speed, memory)]
    assert cells == [
        ["work", "ours", "peer", "ratio", "goal", "last"],
        ["decode", "gpt2core: 120 tokens/s", "peer: 100 tokens/s", "1.2", "≥ 1.2: met", ""],
        ["memory", "gpt2core, memory: 3 GB", "peer, memory: 4 GB", "0.75", "≤ 0.5: missed", ""],
    ]
    assert len({len(row) for row in (header, line, speed, memory)}) == 1


# -- Arguments -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace what the groups measure; record their names."""
    measured: list[str] = []

    def stub(one: Group) -> tuple[rows.Rounds, str]:
        measured.append(one.name)
        return {}, one.lacks or "stubbed"

    monkeypatch.setattr(all_benchmarks, "measured", stub)
    return measured


TRAININGS = ["train-float32", "train-bfloat16", "train-long"]
CPU_GROUPS = ["first-token", "train-default", "generate-1", "generate-8", *TRAININGS, "repro"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], CPU_GROUPS),
        (["--long"], [*CPU_GROUPS, "tiny-shakespeare", "novels"]),
        (["--device", "cuda"], ["train-124M", "train-355M", "generate-1", "generate-64"]),
        (["--only", "repro", "generate-1"], ["generate-1", "repro"]),
    ],
)
def test_which_groups_run(
    options: list[str], names: list[str], stubbed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_benchmarks.main([*options, "--json", "--records", str(tmp_path)])
    assert stubbed == names
    printed = json.loads(capsys.readouterr().out)
    assert printed == one_record(tmp_path)
    assert printed["command"] == " ".join(["python -m benchmarks.all", *options, "--json"])
    assert len({row["key"] for row in printed["rows"]}) == len(printed["rows"])


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--rounds", "0"], ["--device", "tpu"], ["--only"]])
def test_wrong_options_are_refused(wrong: list[str], stubbed: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        all_benchmarks.main([*wrong, "--records", str(tmp_path)])
    assert stubbed == [] and not list(tmp_path.iterdir())


def test_without_a_gpu_its_rows_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    all_benchmarks.main(["--device", "cuda", "--records", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()[4:]
    assert len(lines) == 12 and all("not run: this machine has no CUDA GPU" in line for line in lines)
    assert sum("vLLM" in line for line in lines) == 2


def test_the_rows_of_the_issues_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", "mirror")
    monkeypatch.setattr("gpt2core.runtime._cpu_has_bfloat16", lambda: True)
    groups = [*rows.cpu_groups(), *rows.long_groups()]
    goals = [row.at_least or row.at_most for one in groups for row in one.rows if row.at_least or row.at_most]
    assert goals == [
        1.0, 1.3, 1.15, 0.85, 2.0, 1.2, 1.8, 2.0, 1.1, 0.8, 1.2, 0.8, 1.2, 1.2, 0.5, 0.1, 1.0, 1.0, 1.0, 0.2, 0.95
    ]  # fmt: skip
    assert not any(one.lacks for one in groups)


def test_bfloat16_training_needs_its_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2CORE_MIRROR", raising=False)
    monkeypatch.setattr("gpt2core.runtime._cpu_has_bfloat16", lambda: False)
    lacking = {one.name: one.lacks for one in [*rows.cpu_groups(), *rows.long_groups()] if one.lacks}
    assert list(lacking) == ["train-bfloat16", "train-long", "tiny-shakespeare", "novels"]
    assert "bfloat16" in lacking["train-long"] and "GPT2CORE_MIRROR" in lacking["novels"]


# -- Measurements on a small scale -----------------------------------------------------------------------------------


def test_a_training_step_gives_rates_operations_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers have tests of their own."""
    work = Work("tiny", 2, 32, "float32", compile=False)

    def measure_speed(asked: Work, sides: list[str], device: torch.device, rounds: int) -> train_step.Speed:
        assert (asked, sides, rounds) == (work, ["nanogpt", "gpt2core"], 2)
        times_s = {"nanogpt": [1.0, 1.0], "gpt2core": [0.5, 0.5]}
        return train_step.Speed([1e12, 2e12], times_s, {"nanogpt": 2e9, "gpt2core": 1e9})

    monkeypatch.setattr(train_step, "measure_speed", measure_speed)
    monkeypatch.setattr(decoders, "lacks", lambda name: "not installed" if "transformers" in name else "")
    one = rows.train_group("t", work, 2, at_least=1.1, mfu=0.8)
    found, _ = all_benchmarks.measured(one)
    speed, _, mfu, _ = one.rows
    assert speed.work == "training step, tiny, B=2 T=32, float32, not compiled"
    assert found["gpt2core"] == [128.0, 128.0] and speed.ratio(found) == 2.0
    per_token = train_step.flops_per_token(work.config, 32)
    assert mfu.ratio(found) == pytest.approx(128 * per_token / 2e12)  # of the best product
    assert found["gpt2core, memory"] == [1.0] and found["batch size"] == [2] and "transformers" not in found


def test_a_batch_size_of_0_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work("tiny", 0, 32, "float32", compile=False)
    monkeypatch.setattr(train_step, "batch_size_for_memory", lambda asked, sides: 16)
    monkeypatch.setattr(
        train_step,
        "measure_speed",
        lambda asked, *_: train_step.Speed([1e12], {"gpt2core": [asked.tokens]}, {"gpt2core": 1}),
    )
    found = rows.measure_training(work, 1)
    assert found["batch size"] == [16] and found["gpt2core"] == [1.0]


def test_decoding_on_a_small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    small = GPT(GPTConfig(64, n_positions=32, n_embd=32, n_layer=1, n_head=1)).eval()
    monkeypatch.setattr(machine, "random_model", lambda size: small)
    monkeypatch.setattr(machine, "memory_bandwidth_gb_s", lambda: 10.0)
    monkeypatch.setattr(decoders, "lacks", lambda name, n=1: "" if "gpt2core" in name else "not installed")
    one = rows.generate_group("tiny", 1, 4, 8, 2)
    found, reason = all_benchmarks.measured(one)
    assert not reason
    weights = 12 * 32**2 + 64 * 32
    limits = {dtype: found[f"memory bandwidth, {dtype}"] for dtype in ("float32", "bfloat16", "int8")}
    assert limits == {
        dtype: [pytest.approx(10e9 / weights / n)] for dtype, n in (("float32", 4), ("bfloat16", 2), ("int8", 1))
    }
    lines = [all_benchmarks.line(row, found, "", {}) for row in one.rows]
    assert [row["peer"] for row in lines if not row["not_run"]] == [f"memory bandwidth, {dtype}" for dtype in limits]
    assert all(row["ours_median"] > 0 for row in lines)


def test_rows_of_a_gpu_choose_the_batch_size() -> None:
    train, *_, one, many = rows.gpu_groups()
    assert train.rows[0].work == "training step, 124M, T=1024, bfloat16, compiled"
    assert [row.at_least for row in train.rows] == [1.2, None, 0.5, None]
    assert [row.peer for row in one.rows] == [row.peer for row in many.rows] == list(decoders.peers(CUDA))


@pytest.mark.slow
def test_a_step_of_the_default_profile(capfd: pytest.CaptureFixture[str]) -> None:
    profile = default_step.ROOT / "profiles/tiny.yaml"
    found = default_step.measure(rounds=1, steps=1, profile=profile)
    assert list(found) == list(default_step.SIDES) and all(rates[0] > 0 for rates in found.values())


def test_the_examples() -> None:
    assert doctest.testmod(all_benchmarks).failed == 0
