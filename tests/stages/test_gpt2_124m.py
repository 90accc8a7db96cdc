"""The profile `gpt2-124m`, a step a stage, from a mirror with a generated checkpoint of OpenAI's size and names."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2core
from gpt2core.files import sha256
from gpt2core.params.profiles import render_profile
from tests.stages.conftest import ROOT, Project, clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the fixtures count, too

CHECKPOINT = "model.ckpt.data-00000-of-00001"
PARAMETERS = 124_439_808
ONE_STEP = {
    "pretrain.max_steps": 1,
    "pretrain.eval_interval_steps": 1,
    "pretrain.sample_tokens": 4,
    "finetune_classify.max_steps": 1,
    "finetune_classify.val_fraction": 0.01,
    "finetune_classify.test_fraction": 0.02,
    "finetune_instruct.max_steps": 1,
    "finetune_instruct.val_fraction": 0.004,
    "finetune_instruct.test_fraction": 0.004,
    "finetune_instruct.max_new_tokens": 4,
    "judge.max_items": 3,
}


@pytest.fixture(scope="module")
def mirror_124m(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The real inputs, and `openai-124M/` with random weights beside them."""
    folder = tmp_path_factory.mktemp("mirror")
    for asset in ("the-verdict", "sms-spam-collection", "instruction-data", "gpt2-bpe"):
        (folder / asset).symlink_to(mirror / asset)
    command = [sys.executable, ROOT / "scripts/make_random_checkpoint.py", "124M", folder / "openai-124M"]
    subprocess.run([*command, "--bpe", mirror / "gpt2-bpe"], check=True, timeout=120)
    assert (folder / "openai-124M" / CHECKPOINT).stat().st_size == 4 * PARAMETERS  # OpenAI's file, to the byte
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def project(mirror_124m: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The profile, reproduced."""
    folder = tmp_path_factory.mktemp("gpt2-124m")
    project = clone(folder / "project")
    project.env = project.env | {"GPT2CORE_MIRROR": str(mirror_124m), "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    project.dvc("config", "cache.type", "hardlink,copy")  # half the disk
    project.profile("gpt2-124m")
    project.set_params(ONE_STEP)
    try:
        project.dvc("repro", timeout_s=560)
        yield project
    finally:
        shutil.rmtree(folder)


def metrics(project: Project, name: str) -> dict[str, Any]:
    return json.loads((project.root / f"metrics/{name}.json").read_text())


def test_the_models_are_whole(project: Project) -> None:
    for name in ("openai/124M", "instruct"):
        model, tokenizer = gpt2core.load(project.root / "models" / name)
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS
        assert (model.config.n_positions, tokenizer.vocab_size) == (1024, 50_257)
        assert tokenizer.encode("Hello, world") == [15496, 11, 995]
    model, _ = gpt2core.load(project.root / "models/classifier")
    assert model(torch.tensor([[15496, 11, 995]]), torch.tensor([3])).shape == (1, 2)
    pretrained, _ = gpt2core.load(project.root / "models/pretrained")
    assert (pretrained.config.n_layer, pretrained.config.n_embd) == (12, 768)
    assert (pretrained.config.n_positions, pretrained.config.qkv_bias) == (256, False)  # as in the book


def test_the_weights_are_the_mirrors(project: Project, mirror_124m: Path) -> None:
    """transformers' tensors, from a reader that is not ours."""
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(project.root / "models/openai/124M/model.safetensors")
    assert sum(array.size for array in tensors.values()) == PARAMETERS
    data = (mirror_124m / "openai-124M" / CHECKPOINT).read_bytes()
    for name in ("transformer.wte.weight", "transformer.h.11.attn.c_attn.weight", "transformer.ln_f.bias"):
        assert tensors[name].astype("<f4").tobytes() in data


def test_the_real_data_went_in(project: Project, mirror: Path) -> None:
    tokens = metrics(project, "tokenize")
    assert tokens["train_tokens"] + tokens["val_tokens"] - 2 == pytest.approx(5145, abs=2)  # with two separators
    classifier = metrics(project, "finetune_classify")
    messages = sum(classifier[f"{split}_messages"] for split in ("train", "val", "test"))
    lines = (mirror / "sms-spam-collection/SMSSpamCollection").read_text(encoding="utf-8").splitlines()
    spam = [line.partition("\t")[2] for line in lines if line.startswith("spam\t")]
    # All spam, with its repeats, and as many different messages that are no spam, with theirs.
    assert len(spam) + len(set(spam)) <= messages <= 2 * len(spam)
    instruct = metrics(project, "finetune_instruct")
    assert sum(instruct[f"{split}_entries"] for split in ("train", "val", "test")) == 1100
    assert metrics(project, "llm_judge_eval")["n"] == 3


def test_nothing_of_the_mirror_is_in_the_lock(project: Project, mirror_124m: Path) -> None:
    for name in ("dvc.lock", "params.yaml"):
        assert str(mirror_124m) not in (project.root / name).read_text()
    project.env.pop("GPT2CORE_MIRROR")
    assert project.dvc("repro", timeout_s=60).stages_run == []


class Cutting(http.server.BaseHTTPRequestHandler):
    """Serves a folder, in ranges; the first answer of each large file breaks off in the middle."""

    folder: Path
    cut: set[str]
    ranges: list[str]

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        given = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(given[1]) if given else 0
        if given:
            self.ranges.append(f"{path.name} {start}")
        self.send_response(206 if given else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{size}"')
        if given:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        left = size - start
        if size > 1 << 20 and path.name not in self.cut:
            self.cut.add(path.name)
            left //= 2
            self.close_connection = True
        with path.open("rb") as file, contextlib.suppress(ConnectionError):
            file.seek(start)
            while left and (block := file.read(min(left, 1 << 20))):
                self.wfile.write(block)
                left -= len(block)

    def log_message(self, *_: object) -> None:
        pass


def test_fetch_over_http_goes_on_where_the_connection_broke(
    mirror_124m: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Handler", (Cutting,), {"folder": mirror_124m, "cut": set(), "ranges": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        (tmp_path / "params.yaml").write_text(render_profile(ROOT / "profiles/gpt2-124m.yaml"))
        env = os.environ | {
            "GPT2CORE_MIRROR": f"http://127.0.0.1:{server.server_port}",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "stages.fetch_openai_weights", "124M"]
        env.pop("DVC_ROOT", None)
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr[-3000:]
        theirs = {path.name: sha256(path) for path in (mirror_124m / "openai-124M").iterdir()}
        assert {path.name: sha256(path) for path in (tmp_path / "data/openai/124M").iterdir()} == theirs
        assert CHECKPOINT in handler.cut
        resumed = [int(entry.split()[1]) for entry in handler.ranges if entry.startswith(CHECKPOINT)]
        assert max(resumed) > PARAMETERS  # a quarter of its bytes and more were not asked for again
        assert not list(tmp_path.rglob("*.part"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
        shutil.rmtree(tmp_path)
