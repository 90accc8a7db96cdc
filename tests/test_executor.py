"""Independent tasks here, in processes of this machine, and on Ray: the same results, reports, and errors."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2core.checkpoint.model_dir import save_model
from gpt2core.config.tokenizer import Tokenizer as TokenizerParams
from gpt2core.corpus import documents
from gpt2core.corpus import tokenize as tokenize_module
from gpt2core.corpus.tokenize import tokenize
from gpt2core.errors import UserError
from gpt2core.executor import LocalProcesses, RayCluster, open_executor
from gpt2core.model import GPT, GPTConfig
from gpt2core.prompts import alpaca, chat_template
from gpt2core.tokenizer import END_OF_TEXT
from gpt2core.tokenizer.train import train_bpe
from tests import executor_tasks as tasks
from tests.corpus.corpora import BOOK, folder_with

ROOT = Path(__file__).parent.parent
WITH_A_MODEL = """
import json, sys
from pathlib import Path
from tests.executor_tasks import with_a_model
print(json.dumps(with_a_model(Path(sys.argv[1]))))
"""
TALES = f"\n{END_OF_TEXT}\n".join(f"Tale {i} of the lantern:{' and so on' * (i % 30)}." for i in range(400))


def save_small_model(folder: Path) -> None:
    tokenizer = train_bpe([TALES], 280)
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.vocab_size, 192, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    save_model(folder, GPT(config), tokenizer, chat_template=chat_template(alpaca))


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `executor_tasks.main` prints: the tasks on a Ray cluster of this machine, in a process of its own."""
    pytest.importorskip("psutil")
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray: make peers")
    folder = tmp_path_factory.mktemp("ray")
    save_small_model(folder / "model")
    variables = {
        "PYTHONPATH": str(ROOT),
        "GPT2CORE_RAY": "local",
        "GPT2CORE_PROCESSES": "2",
        "ATEN_CPU_CAPABILITY": "avx2",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from tests.executor_tasks import main; main()", folder],
        cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE, text=True, timeout=400, check=True,
    )  # fmt: skip
    assert (folder / "died").exists()
    return {"folder": folder, **json.loads(done.stdout.splitlines()[-1])}


def mapped(function: Any, numbers: Any, *first: Any, processes: int | None = None) -> tuple[list[Any], list[Any]]:
    """Results and reports of a task for each number."""
    reports: list[Any] = []
    with open_executor(processes) as executor:
        results = list(executor.map(function, ([*first, n] for n in numbers), lambda *values: reports.append(values)))
    return results, reports


SQUARES = [n * n for n in range(20)]
REPORTS = [(word, n) for n in range(20) for word in ("began", "squares")]


@pytest.mark.parametrize("processes", [1, 2])
def test_results_and_reports_come_in_order(processes: int) -> None:
    assert mapped(tasks.square, range(20), processes=processes) == (SQUARES, REPORTS)


def test_a_task_is_drawn_after_the_results_before_it() -> None:
    """In one process a task may depend on the result before it; several draw a few ahead, not all."""
    for processes, most in ((1, 1), (2, 8)):
        drawn = 0

        def numbers() -> Iterator[list[int]]:
            nonlocal drawn
            for n in range(100):
                drawn += 1
                yield [n]

        with open_executor(processes) as executor:
            for n, square in enumerate(executor.map(tasks.square, numbers())):
                assert square == n * n
                assert drawn <= n + most


def test_ray_is_not_started_for_a_number_of_processes_or_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_RAY", "local")
    assert isinstance(open_executor(), RayCluster)
    assert isinstance(open_executor(2), LocalProcesses)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert isinstance(open_executor(), LocalProcesses)


def test_a_model_has_this_process_without_ray() -> None:
    assert open_executor(with_model=True).slots == 1


def test_without_ray_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_RAY", "local")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"GPT2CORE_RAY=local: .*gpt2core\[ray\]"), open_executor():
        pass


def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("GPT2CORE_RAY", "127.0.0.1:9")
    with pytest.raises(UserError, match="GPT2CORE_RAY=127.0.0.1:9: cannot join this Ray cluster"), open_executor():
        pass


@pytest.mark.slow
def test_ray_gives_the_same_results_reports_and_errors(on_ray: dict[str, Any]) -> None:
    """One of the tasks kills its process at the first try."""
    squares, _, after_a_kill = on_ray["results"]
    assert (squares, on_ray["reports"]) == (SQUARES, [list(values) for values in REPORTS])
    assert after_a_kill == [0, 1, 2, 3]
    mistake, missing = on_ray["errors"]
    assert mistake == ["UserError", "row 2: is not allowed", "None"]  # without Ray's traceback
    assert missing[:2] == ["FileNotFoundError", "[Errno 2] No such file or directory: 'gone.txt'"]


@pytest.mark.slow
def test_a_model_on_ray_computes_the_same(on_ray: dict[str, Any]) -> None:
    """Perplexity, benchmarks, responses, and a judge; exactly, since batches and instructions are the same."""
    folder = on_ray["folder"]
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_MODEL, folder / "model"], cwd=folder, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "ATEN_CPU_CAPABILITY": "avx2"},
        timeout=200, check=True,
    )  # fmt: skip
    here = json.loads(done.stdout.splitlines()[-1])
    assert on_ray["model"] == here
    assert len(set(here["replies"])) > 1
    assert here["reports"] == [[192 + 280 + 3, 192 + 280 + 4], [["told", 3], ["told", 4]]]
    assert here["left"] == []


@pytest.mark.slow
def test_ray_listens_on_loopback_only(on_ray: dict[str, Any]) -> None:
    assert on_ray["listening"] == ["127.0.0.1"]


@pytest.mark.slow
def test_a_task_on_ray_is_in_the_folder_and_the_code_of_its_caller(on_ray: dict[str, Any]) -> None:
    ((folder, variables, code, has_torch),) = on_ray["results"][1]
    assert (folder, code) == (str(on_ray["folder"]), tasks.executor.__file__)
    assert variables == {"GPT2CORE_RAY": "", "GPT2CORE_PROCESSES": "1", "ATEN_CPU_CAPABILITY": "avx2"}
    assert not has_torch


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def small_parts(root: Path, monkeypatch: pytest.MonkeyPatch) -> TokenizerParams:
    """Write a corpus that has many parts in one, and return params that use all of the tokenizer's tasks."""
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setattr(documents, "PART_BYTES", 4096)
    monkeypatch.setattr(tokenize_module, "PARALLEL_FROM_BYTES", 0)
    monkeypatch.setattr(tokenize_module, "LEARN_CHARS", 30_000)
    folder_with(root / "raw" / "corpus", a=TALES, b=BOOK)
    return TokenizerParams(kind="bpe", vocab_size=280, val_fraction=0.1, drop_duplicates=True, shuffle=True)


class JsonOnly(LocalProcesses):
    """This process, with arguments and results that become JSON and come back."""

    def map(self, function: Any, tasks: Any, on_report: Any = None) -> Iterator[Any]:
        for task in tasks:
            yield json.loads(json.dumps(function(*json.loads(json.dumps(task)))))


def test_only_values_of_json_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = small_parts(tmp_path, monkeypatch)
    figures = tokenize(params, 1, tmp_path / "raw", tmp_path / "here", 1)
    monkeypatch.setattr(tokenize_module, "open_executor", lambda processes: JsonOnly())
    assert tokenize(params, 1, tmp_path / "raw", tmp_path / "json") == figures
    assert contents(tmp_path / "json") == contents(tmp_path / "here")


@pytest.mark.slow
def test_tokenizing_on_two_nodes_of_which_one_is_killed_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 2 dies while it has a task; the task is run again on the other one."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    params = small_parts(tmp_path, monkeypatch)
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "120")
    tokenize(params, 1, tmp_path / "raw", tmp_path / "here", 1)
    for _ in range(3):  # Ray gives a node 30 s to start, too little on a busy machine
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            second = cluster.add_node(num_cpus=1)
            break
        except Exception:
            cluster.shutdown()
    monkeypatch.setenv("GPT2CORE_RAY", cluster.address)
    try:
        with open_executor() as executor:  # the connection that all of this test shares
            assert executor.slots == 2
            results = executor.map(tasks.wait_for, ([str(tmp_path), n] for n in range(2)))
            waiting = ThreadPoolExecutor(1).submit(list, results)
            while len(pids := dict(path.name.split("-")[1:] for path in tmp_path.glob("[01]-*-*"))) < 2:
                time.sleep(0.05)
            cluster.remove_node(second, allow_graceful=False)
            with contextlib.suppress(ProcessLookupError):  # as a machine dies: with all of its processes
                os.kill(int(pids.pop(second.node_id)), signal.SIGKILL)
            (tmp_path / "go").touch()
            ended = waiting.result(timeout=60)
            assert [n for n, _ in ended] == [0, 1]
            assert {node for _, node in ended} == set(pids)
            tokenize(params, 1, tmp_path / "raw", tmp_path / "ray")
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
