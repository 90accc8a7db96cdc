"""The benchmark of busy machines: its alternation, its medians, and its busy processes."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks import busy
from benchmarks.machine import Used
from gpt2core.params import load_params


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Stub the measured programs. Record module, wait policy, and number of busy processes; busy runs take twice as
    long, and each run takes longer than the one before."""
    runs: list[tuple[str, str, int]] = []

    def run_measured(command: list[str], env: dict[str, str], interval_s: float, cwd: Path) -> Used:
        assert (cwd / "dvc.yaml").exists() and (env["GPT2CORE_TRACKING"], env["GPT2CORE_RESUME"]) == ("off", "off")
        steps = yaml.safe_load((cwd / "params.yaml").read_text())["pretrain"]["max_steps"]
        n_busy = sum("getppid" in " ".join(child.cmdline()) for child in psutil.Process().children())
        runs.append((f"{command[2]} {steps}", env.get("OMP_WAIT_POLICY", ""), n_busy))
        return Used((1 + len(runs)) * (2.0 if n_busy else 1.0), 0)

    monkeypatch.setattr(busy, "run_measured", run_measured)
    return runs


def test_idle_and_busy_runs_alternate(runs: list[tuple[str, str, int]], capsys: pytest.CaptureFixture[str]) -> None:
    n_cores = len(os.sched_getaffinity(0))
    busy.main(["--steps", "5", "--env", "OMP_WAIT_POLICY=PASSIVE", "--repro", "--json"])
    report = json.loads(capsys.readouterr().out)
    a_round = [("", 0), ("", n_cores), ("PASSIVE", 0), ("PASSIVE", n_cores)]
    assert runs[:3] == [
        ("stages.download_data 5", "", 0), ("stages.tokenize 5", "", 0), ("stages.pretrain 5", "", 0)
    ]  # fmt: skip
    assert runs[3:] == [
        *(("stages.pretrain 5", *run) for run in 3 * a_round), *(("dvc 480", *run) for run in 3 * a_round)
    ]  # fmt: skip
    assert [row["env"] for row in report["pretrain"]] == [{}, {"OMP_WAIT_POLICY": "PASSIVE"}]
    first = report["pretrain"][0]
    assert (first["idle_s"], first["busy_s"]) == ([5, 9, 13], [12, 20, 28])
    assert (first["idle_median_s"], first["busy_median_s"], first["busy_to_idle"]) == (9, 20, pytest.approx(20 / 9))
    assert len(report["repro"]) == 2


def test_it_prints_a_row_for_each_setting(runs: list[tuple[str, str, int]], capsys: pytest.CaptureFixture[str]) -> None:
    busy.main(["--env", "A=1 B=2"])
    title, *rows = capsys.readouterr().out.splitlines()[1:]
    assert title == "stage pretrain, 60 steps, median of 3"
    assert [row.split("  idle")[0].strip() for row in rows] == ["default", "A=1 B=2"]
    assert "busy / idle 2.22" in rows[0]


@pytest.mark.parametrize("wrong", [["--rounds", "2"], ["--env", "PASSIVE"], ["--env", ""], ["--steps", "0"]])
def test_wrong_options_are_refused(wrong: list[str], runs: list[tuple[str, str, int]]) -> None:
    with pytest.raises(SystemExit, match="2"):
        busy.main(wrong)
    assert runs == []


def test_a_failure_leaves_no_busy_process() -> None:
    with pytest.raises(RuntimeError), busy.busy_processes(2) as processes:
        assert all(process.poll() is None for process in processes)
        raise RuntimeError
    assert all(process.poll() is not None for process in processes)


def test_a_busy_process_spins_and_ends_with_its_parent() -> None:
    code = "from benchmarks.busy import *\nwith busy_processes(1) as p: print(p[0].pid, flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=busy.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert parent.stdout
    spinning = psutil.Process(int(parent.stdout.readline()))
    limit_s = time.monotonic() + 60
    while sum(spinning.cpu_times()[:2]) < 0.5:  # it uses a core, however slowly
        assert time.monotonic() < limit_s
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    assert not psutil.wait_procs([spinning], timeout=60)[1]


def test_the_params_are_valid_for_few_steps(tmp_path: Path) -> None:
    busy.write_params(tmp_path, 3)
    params = load_params(tmp_path / "params.yaml")
    assert (params.pretrain.max_steps, params.pretrain.eval_interval_steps, params.pretrain.warmup_steps) == (3, 3, 3)
    busy.write_params(tmp_path, None)
    assert load_params(tmp_path / "params.yaml") == load_params(busy.ROOT / "profiles/embedded.yaml")


def test_the_example() -> None:
    assert doctest.testmod(busy) == (0, 1)
