"""Secrets planted wherever a user may put one, and a whole run of the pipeline: no file, message, or page has them."""

from __future__ import annotations

import base64
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote, quote_plus

import pytest

from tests.evaluation.chat_server import Reply, Request, Server
from tests.stages.conftest import Project, clone
from tests.tracking.mlflow_server import mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PLANT = token_hex(6)  # drawn, so that this file does not have it
STORE, MIRROR = f"{PLANT} store/w0rd+1", f"{PLANT}@mirror:w0rd"  # need quoting in a URL
KEY, USER = f"sk-{PLANT}-0123456789", f"us3r-{PLANT}"
SMALL = {
    "data.corpus": "the-verdict", "tokenizer.vocab_size": 400, "pretrain.context": 32, "pretrain.max_steps": 2,
    "pretrain.warmup_steps": 1, "pretrain.eval_interval_steps": 1, "pretrain.batch_size": 2,
    "finetune_classify.max_steps": 1, "finetune_classify.warmup_steps": 1, "finetune_instruct.prompt": "phi3",
    "finetune_instruct.max_steps": 1, "finetune_instruct.warmup_steps": 1, "finetune_instruct.max_new_tokens": 2,
    "judge.kind": "openai", "judge.model": "m", "judge.max_items": 3, "judge.max_retries": 1, "judge.min_coverage": 0,
}  # fmt: skip


def forms(secret: str) -> Iterator[bytes]:
    """Yield a secret as it is, quoted for a URL, spaced out, and in base64, alone and as in a header."""
    yield from (text.encode() for text in (secret, quote(secret, safe=""), quote_plus(secret), " ".join(secret)))
    yield repr(secret)[1:-1].encode()
    for text in (secret, f"{USER}:{secret}", f"Bearer {secret}"):
        yield base64.b64encode(text.encode()).rstrip(b"=")[:-1]  # the last character depends on what follows


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves the real inputs, but cuts each first answer in the middle."""

    cut: set[str] = set()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file() and self.path not in self.cut:
            self.cut.add(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            self.wfile.write(path.read_bytes()[: path.stat().st_size // 2])
            self.close_connection = True
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def mirror_port(mirror: Path) -> Iterator[int]:
    def handler(*arguments: object) -> Mirror:
        return Mirror(*arguments, directory=str(mirror))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def chat() -> Iterator[Server]:
    """A judge that gives the key back: in an error, in a reply, and in a score's place."""
    server = Server()
    n_asked = 0

    def answer(request: Request) -> Reply:
        nonlocal n_asked
        n_asked += 1
        header = request.headers["Authorization"]
        if n_asked % 5 == 0:
            return Reply(status=500, text=header, body=f'{{"error": {{"message": "no: {header}"}}}}'.encode())
        return Reply(f"I was asked with {header}" if n_asked % 3 else "70")

    server.answer = answer
    yield server
    server.close()


def check(places: list[Path], output: str, secrets: tuple[str, ...]) -> None:
    """Check that no secret is in what was printed, or in a file's content or name."""
    planted = {form for secret in secrets for form in forms(secret)}
    assert not [form for form in planted if form in output.encode()]
    n_files = 0
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        n_files += 1
        content = path.read_bytes() + str(path).encode()
        assert not [form for form in planted if form in content], path
    assert n_files > 100


def test_no_secret_is_in_anything_that_a_run_leaves(tmp_path: Path, mirror_port: int, chat: Server) -> None:
    project: Project = clone(tmp_path / "project")
    project.profile("tiny")
    project.set_params(SMALL | {"judge.base_url": chat.base_url})
    project.commit("small")
    (tmp_path / "store").mkdir()
    env = {
        "GPT2CORE_TRACKING": "on", "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1",
        "GPT2CORE_MIRROR": f"http://{USER}:{quote(MIRROR, safe='')}@127.0.0.1:{mirror_port}",
    }  # fmt: skip
    output = ""
    artifacts = ("--artifacts-destination", str(tmp_path / "store/artifacts"))
    with mlflow_server("server", tmp_path / "store", *artifacts) as port:
        env["MLFLOW_TRACKING_URI"] = f"http://{USER}:{quote(STORE, safe='')}@127.0.0.1:{port}"
        output += project.dvc("repro", timeout_s=400, **env).output
        assert Mirror.cut
        for command in ("summary", "report", "doctor", "sync-mlflow"):
            output += project.python("-m", "gpt2core", command, check=False, **env).output
    assert (tmp_path / "store/artifacts").is_dir()  # the runs are in the store
    # The same without servers: each message about a failure names its address.
    down = env | {"MLFLOW_TRACKING_URI": env["MLFLOW_TRACKING_URI"].replace(str(port), "1")}
    down["GPT2CORE_MIRROR"] = env["GPT2CORE_MIRROR"].replace(str(mirror_port), "1")
    for stage in ("download_data", "llm_judge_eval", "pretrain"):
        output += project.python("-m", f"stages.{stage}", check=False, **down).output
    for command in ("doctor", "report", "sync-mlflow"):
        output += project.python("-m", "gpt2core", command, check=False, **down).output
    assert "127.0.0.1" in output and "***" in output
    check([project.root, tmp_path / "store"], output, (STORE, MIRROR, KEY, USER))


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("judge.base_url", "http://USER:STORE@127.0.0.1:1/v1"),
        ("judge.base_url", "http://127.0.0.1:1/v1?api-key=STORE"),
        ("data.corpus", "https://files.example.org/a.txt?X-Amz-Signature=STORE"),
        ("data.classification", "https://USER:STORE@files.example.org/a.csv"),
    ],
)
def test_a_secret_in_params_is_refused_without_being_shown(tmp_path: Path, name: str, address: str) -> None:
    project = clone(tmp_path / "project")
    project.profile("tiny")
    project.set_params({name: address.replace("USER", USER).replace("STORE", quote(STORE, safe=""))})
    output = ""
    for command in ("gpt2core params --check", "stages.download_data", "gpt2core doctor"):
        ended = project.python("-m", *command.split(), check=False, GPT2CORE_TRACKING="on")
        output += ended.output
        assert ended.returncode == 1
    assert name in output
    (project.root / "params.yaml").unlink()
    shutil.rmtree(project.root / ".git")
    check([project.root], output, (STORE, USER))
