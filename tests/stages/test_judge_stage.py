"""llm-judge-eval with a language model behind a real server: killed and gone on, and what it leaves behind."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gpt2core import files
from gpt2core.params import read_values
from gpt2core.report.pipeline import report_page
from tests.evaluation.chat_server import Reply, Request, Server

ROOT = Path(__file__).parents[2]
KEY = "sk-stage-0123456789"
OUTS = ("metrics/llm_judge_eval.json", "metrics/plots/judge_scores.csv")
N = 12


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def answer(request: Request) -> Reply:
    """Anything, but the same each time; one entry is never scored."""
    if "Which of two" in request.prompt:
        return Reply("A" if "<response_a>\nIt is" in request.prompt else "B", delay_s=0.02)
    if "number 3." in request.prompt:
        return Reply("Three is a fine number.")
    return Reply(str(hashlib.sha256(request.prompt.encode()).digest()[0] % 101), delay_s=0.02)


def project(folder: Path, base_url: str) -> Path:
    yaml = YAML()
    params = read_values(ROOT / "profiles/tiny.yaml")
    params["judge"] |= {
        "kind": ["openai", "chrf"], "base_url": base_url, "model": "m", "concurrency": 2, "pairwise": True,
        "min_coverage": 0.9, "bootstrap_samples": 20,
    }  # fmt: skip
    folder.mkdir()
    yaml.dump(params, folder / "params.yaml")
    entries = [{"instruction": f"Name the number {n}.", "input": "", "output": f"It is {n}."} for n in range(2 * N)]
    tested = [{**entry, "response": f"It is {n % 5}.", "base_response": "?"} for n, entry in enumerate(entries[:N])]
    files.write_json(folder / "data/responses/train.json", entries[N:])
    files.write_json(folder / "data/responses/test.json", tested)
    return folder


def start(folder: Path, tracking: str = "off") -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    env["GPT2CORE_TRACKING"] = tracking
    command = [sys.executable, "-m", "stages.llm_judge_eval"]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in OUTS]


@pytest.mark.slow
def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(server: Server, tmp_path: Path) -> None:
    server.answer = answer
    whole, killed = project(tmp_path / "whole", server.base_url), project(tmp_path / "killed", server.base_url)
    process = start(whole, tracking="on")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    asked = len(server.requests)
    assert "openai:m: 1 of 12 could not be judged: 1 × the reply is not a score from 0 to 100, asked twice" in err
    shown = (r"openai:m: mean \d", r"chrf: mean \d", "agreement of openai:m and chrf: Pearson ", "win rate 100.0%")
    for words in shown:
        assert re.search(words, out), words

    process = start(killed)
    while len(server.requests) < asked + 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / OUTS[0]).exists()
    process = start(killed)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert outs(killed) == outs(whole)
    assert len(server.requests) <= 2 * asked + 2  # at most the two that were under way are asked for twice

    metrics = json.loads((whole / OUTS[0]).read_text())
    assert metrics["coverage"] == round(11 / 12, 4)
    assert list(metrics["judges"]) == ["openai:m", "chrf"]
    assert metrics["pairwise"]["openai:m"]["wins"] == N
    rows = list(csv.DictReader((whole / OUTS[1]).open()))
    assert [row["score"] == "" for row in rows] == [n == 3 for n in range(N)]
    page = report_page(whole)
    for words in ("openai:m and chrf", "order flips", "their mean"):
        assert words in page
    # The key is nowhere: not in the replies, the metrics, the log or MLflow's database.
    left = [path for folder in (whole, killed) for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in left} >= {".jsonl", ".db"}
    assert all(KEY.encode() not in path.read_bytes() for path in left)
    assert KEY not in out + err
