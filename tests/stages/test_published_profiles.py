"""The profiles of published runs, two steps per stage, on generated checkpoints of OpenAI's depth and vocabulary.

The checkpoints are narrow. `python scripts/make_random_checkpoint.py SIZE` writes one of full size.
"""

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
import yaml

import gpt2core
from gpt2core.config.presets import PRESETS
from gpt2core.files import sha256
from gpt2core.params.profiles import render_profile
from tests.stages.conftest import ROOT, Project, clone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the fixtures count, too

CHECKPOINT = "model.ckpt.data-00000-of-00001"
PROFILES = {"gpt2-124m": "124M", "gpt2-355m": "355M", "gpt2-355m-five-epochs": "355M"}
WIDTHS = {"124M": 24, "355M": 32}  # two channels per head
# The profiles pretrain alike, and the last two classify alike; each does what the one before does not.
STAGES = {
    "gpt2-124m": [],
    "gpt2-355m": ["finetune-classify", "llm-judge-eval"],
    "gpt2-355m-five-epochs": ["llm-judge-eval"],
}
TWO_STEPS = {
    "pretrain.n_embd": 24,
    "pretrain.max_steps": 2,
    "pretrain.eval_interval_steps": 1,
    "pretrain.sample_tokens": 4,
    "finetune_classify.max_steps": 2,
    "finetune_classify.val_fraction": 0.01,
    "finetune_classify.test_fraction": 0.02,
    "finetune_instruct.max_steps": 2,
    "finetune_instruct.val_fraction": 0.004,
    "finetune_instruct.test_fraction": 0.004,
    "finetune_instruct.max_new_tokens": 4,
    "judge.max_items": 3,
}


def n_parameters(size: str, width: int) -> int:
    """The formula: embeddings of tokens and positions, twelve squares and thirteen vectors per block, the last norm."""
    return width * (50_257 + 1024 + 2) + PRESETS[size]["n_layer"] * (12 * width**2 + 13 * width)


@pytest.fixture(scope="module")
def checkpoints(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real inputs, with `openai-124M/` and `openai-355M/` next to them."""
    folder = tmp_path_factory.mktemp("mirror")
    for asset in ("the-verdict", "sms-spam-collection", "instruction-data", "gpt2-bpe"):
        (folder / asset).symlink_to(mirror / asset)
    for size, width in WIDTHS.items():
        command = [sys.executable, ROOT / "scripts/make_random_checkpoint.py", size, folder / f"openai-{size}"]
        command += ["--bpe", mirror / "gpt2-bpe", "--width", str(width)]
        subprocess.run(command, check=True, timeout=120)
        assert (folder / f"openai-{size}" / CHECKPOINT).stat().st_size == 4 * n_parameters(size, width)
    return folder


@pytest.fixture(scope="module", params=PROFILES)
def project(
    request: pytest.FixtureRequest, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A profile, reproduced; `name` and `size` are in its environment."""
    folder = tmp_path_factory.mktemp(request.param)
    project = clone(folder / "project")
    project.env = project.env | {
        "GPT2CORE_MIRROR": str(checkpoints), "OMP_NUM_THREADS": str(os.cpu_count() or 1),
        "PROFILE": request.param, "SIZE": PROFILES[request.param],
    }  # fmt: skip
    project.profile(request.param)
    project.set_params(TWO_STEPS)
    if request.param == "gpt2-124m":  # a whole epoch, after which all splits are classified
        project.set_params({"finetune_classify.max_steps": None, "finetune_classify.epochs": 1})
    elif request.param == "gpt2-355m-five-epochs":
        project.set_params({"finetune_instruct.checkpoint_steps": [1]})
    project.dvc("repro", *STAGES[request.param], timeout_s=560)
    yield project
    shutil.rmtree(folder)


def metrics(project: Project, name: str) -> dict[str, Any]:
    return json.loads((project.root / f"metrics/{name}.json").read_text())


def test_what_is_run_once_is_alike() -> None:
    one, two, three = (yaml.safe_load(render_profile(ROOT / f"profiles/{name}.yaml")) for name in PROFILES)
    assert one["pretrain"] == two["pretrain"] == three["pretrain"]
    assert two["finetune_classify"] == three["finetune_classify"]


def test_the_models_have_openais_depth_and_vocabulary(project: Project) -> None:
    size = project.env["SIZE"]
    for name in (f"openai/{size}", "instruct"):
        model, tokenizer = gpt2core.load(project.root / "models" / name)
        assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters(size, WIDTHS[size])
        assert (model.config.n_layer, model.config.n_head) == (PRESETS[size]["n_layer"], PRESETS[size]["n_head"])
        assert (model.config.n_positions, tokenizer.vocab_size) == (1024, 50_257)
        assert tokenizer.encode("Hello, world") == [15496, 11, 995]
    if project.env["PROFILE"] != "gpt2-355m-five-epochs":
        model, _ = gpt2core.load(project.root / "models/classifier")
        assert model(torch.tensor([[15496, 11, 995]]), torch.tensor([3])).shape == (1, 2)
    if project.env["PROFILE"] == "gpt2-124m":
        pretrained, _ = gpt2core.load(project.root / "models/pretrained")
        assert (pretrained.config.n_layer, pretrained.config.n_positions) == (12, 256)
        assert not pretrained.config.qkv_bias  # as in the book


def test_the_weights_are_the_checkpoints(project: Project, checkpoints: Path) -> None:
    """transformers' tensors, from a reader that is not ours."""
    safetensors = pytest.importorskip("safetensors.numpy")
    size = project.env["SIZE"]
    tensors = safetensors.load_file(project.root / f"models/openai/{size}/model.safetensors")
    assert sum(array.size for array in tensors.values()) == n_parameters(size, WIDTHS[size])
    data = (checkpoints / f"openai-{size}" / CHECKPOINT).read_bytes()
    last = PRESETS[size]["n_layer"] - 1
    for name in ("transformer.wte.weight", f"transformer.h.{last}.attn.c_attn.weight", "transformer.ln_f.bias"):
        assert tensors[name].astype("<f4").tobytes() in data


def test_each_training_changes_what_it_should(project: Project) -> None:
    """The classifier trains its last block, final norm, and head; the instruction tuning trains everything."""
    safetensors = pytest.importorskip("safetensors.numpy")
    base, classifier, instruct = (
        safetensors.load_file(path) if (path := project.root / f"models/{name}/model.safetensors").exists() else {}
        for name in (f"openai/{project.env['SIZE']}", "classifier", "instruct")
    )
    last = f"transformer.h.{PRESETS[project.env['SIZE']]['n_layer'] - 1}."
    assert bool(classifier) == (project.env["PROFILE"] != "gpt2-355m-five-epochs")
    for name, array in base.items():
        assert (instruct[name] != array).any()
        if classifier:
            assert (classifier[name] != array).any() == name.startswith((last, "transformer.ln_f.")), name


def test_the_real_data_went_in(project: Project, mirror: Path) -> None:
    instruct = metrics(project, "finetune_instruct")
    assert sum(instruct[f"{split}_entries"] for split in ("train", "val", "test")) == 1100
    assert metrics(project, "llm_judge_eval")["n"] == 3
    if project.env["PROFILE"] == "gpt2-124m":
        classifier = metrics(project, "finetune_classify")
        messages = sum(classifier[f"{split}_messages"] for split in ("train", "val", "test"))
        lines = (mirror / "sms-spam-collection/SMSSpamCollection").read_text(encoding="utf-8").splitlines()
        spam = [line.partition("\t")[2] for line in lines if line.startswith("spam\t")]
        # All spam, with its repeats, and as many different messages that are no spam, with theirs.
        assert len(spam) + len(set(spam)) <= messages <= 2 * len(spam)
        tokens = metrics(project, "tokenize")
        assert tokens["train_tokens"] + tokens["val_tokens"] - 2 == pytest.approx(5145, abs=2)  # with two separators


def test_the_summary_has_the_six_cells(project: Project) -> None:
    """Accuracy before and after, on training, validation, and test messages, of a training of an epoch."""
    if project.env["PROFILE"] != "gpt2-124m":
        return
    cells = metrics(project, "finetune_classify")["kept_model"]
    shown = project.python("-m", "gpt2core", "summary", timeout_s=60).stdout
    for split in ("train", "val", "test"):
        for key in (f"before_{split}_accuracy", f"{split}_accuracy"):
            assert f"{cells[key]:.2%}" in shown


def test_nothing_of_the_mirror_is_in_the_lock(project: Project, checkpoints: Path) -> None:
    for name in ("dvc.lock", "params.yaml"):
        assert str(checkpoints) not in (project.root / name).read_text()
    if project.env["PROFILE"] == "gpt2-124m":
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
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Handler", (Cutting,), {"folder": checkpoints, "cut": set(), "ranges": []})
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
        theirs = {path.name: sha256(path) for path in (checkpoints / "openai-124M").iterdir()}
        assert {path.name: sha256(path) for path in (tmp_path / "data/openai/124M").iterdir()} == theirs
        assert CHECKPOINT in handler.cut
        resumed = [int(entry.split()[1]) for entry in handler.ranges if entry.startswith(CHECKPOINT)]
        assert max(resumed) > n_parameters("124M", WIDTHS["124M"])  # more than a quarter of its bytes came only once
        assert not list(tmp_path.rglob("*.part"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
        shutil.rmtree(tmp_path)
