"""Corpora on S3 and the Hugging Face Hub, read where they are, from servers on 127.0.0.1."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pytest

from gpt2core.config.data import Data
from gpt2core.config.tokenizer import Tokenizer as TokenizerParams
from gpt2core.corpus import remote
from gpt2core.corpus.tokenize import tokenize
from gpt2core.errors import UserError
from gpt2core.sources.download_data import prepare_raw

ROOT = Path(__file__).parents[2]
TALES = [f"Tale {i} of the lantern:{' and so on' * (i % 30)}." for i in range(300)]
ROWS = "".join(json.dumps({"text": text}) + "\n" for text in TALES).encode()
TEXT = "\n<|endoftext|>\n".join(TALES[::-1]).encode()


def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": list(range(300)), "text": [text.upper() for text in TALES]})
    pyarrow.parquet.write_table(table, stream := io.BytesIO(), row_group_size=100)
    return stream.getvalue()


def zstd() -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(ROWS.lower())
    return sink.getvalue().to_pybytes()


def contents() -> dict[str, bytes]:
    """A file of each form, by its name, and one that is none."""
    packed = gzip.compress(ROWS.replace(b"Tale", b"Story"), mtime=0)
    forms = {"a.txt": TEXT, "b.jsonl": ROWS, "c.jsonl.gz": packed, "d.jsonl.zst": zstd(), "e.parquet": parquet()}
    return {**forms, "README.md": b"about these files"}


def tokens_of(corpus: str, root: Path) -> dict[str, bytes]:
    """The shards and the tokenizer of a corpus."""
    prepare_raw(Data(corpus=corpus), "bpe", 1, root / "raw", root / "own")
    params = TokenizerParams(kind="bpe", vocab_size=300, val_fraction=0.1, drop_duplicates=True, shuffle=False)
    tokenize(params, 1, root / "raw", root / "tokens", 1)
    return {path.name: path.read_bytes() for path in (root / "tokens").iterdir()}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def local_tokens(root: Path) -> dict[str, bytes]:
    """The same for the same files in data/own."""
    (root / "own" / "set").mkdir(parents=True)
    for name, content in contents().items():
        (root / "own" / "set" / name).write_bytes(content)
    return tokens_of("own/set", root)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server on loopback, with the files in the bucket `texts`."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    for name, value in (variables | {"ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="texts")
        for name, content in contents().items():
            client.put_object(Bucket="texts", Key=f"set/{name}", Body=content)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield client
    finally:
        server.stop()


def test_a_bucket_gives_the_bytes_of_the_same_local_files(s3: Any, tmp_path: Path) -> None:
    here = local_tokens(tmp_path / "here")
    for number, address in enumerate(("s3://texts/set", "s3://texts/set/*.*")):
        assert tokens_of(address, tmp_path / str(number)) == here
    listing = json.loads((tmp_path / "0/raw/corpus/train/remote.json").read_text())
    assert [row["url"] for row in listing] == [
        f"s3://texts/set/{name}" for name in sorted(contents()) if name[0] != "R"
    ]
    assert listing[1] == {
        "url": "s3://texts/set/b.jsonl", "size_bytes": len(ROWS), "version": hashlib.md5(ROWS).hexdigest(),
    }  # fmt: skip


def test_a_file_that_changed_is_refused_until_it_is_listed_again(s3: Any, tmp_path: Path) -> None:
    first = tokens_of("s3://texts/set/b.jsonl", tmp_path)
    s3.put_object(Bucket="texts", Key="set/b.jsonl", Body=ROWS.replace(b"lantern", b"candles"))
    remote._system("s3://texts")[0].invalidate_cache()
    params = TokenizerParams(kind="bpe", vocab_size=300, val_fraction=0.1)
    with pytest.raises(UserError, match=r"b\.jsonl: has changed .* dvc repro --force --single-item download-data"):
        tokenize(params, 1, tmp_path / "raw", tmp_path / "tokens", 1)
    assert tokens_of("s3://texts/set/b.jsonl", tmp_path) != first


def test_mistakes_on_s3_name_the_address(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(corpus: str) -> str:
        with pytest.raises(UserError) as error:
            prepare_raw(Data(corpus=corpus), "bpe", 1, tmp_path / "raw", tmp_path / "own")
        return str(error.value)

    assert "data.corpus: s3://texts/other/*.txt: no file of the kind .txt" in refused("s3://texts/other/*.txt")
    assert "s3://nobody/*.txt: no " in refused("s3://nobody/*.txt")
    assert "a user name or password" in refused("s3://key:secret@texts/a.txt")
    assert "names no bucket; write, for example, s3://BUCKET/texts/*.jsonl" in refused("s3://")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    assert "pip install 'gpt2core[s3]'" in refused("s3://texts/set")


def test_without_credentials_the_message_says_what_to_set(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UserError, match="set AWS_ACCESS_KEY_ID"):
        remote.find("s3://texts/set")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's HTTP API that its file system asks: revisions, trees, paths, and files with ranges."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.rpartition("/")[2]
        if path in (
            "/api/datasets/someone/tales",
            *(f"/api/datasets/someone/tales/revision/{r}" for r in ("main", COMMIT)),
        ):
            self._json({"id": "someone/tales", "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0})
        elif path.startswith(f"/api/datasets/someone/tales/tree/{COMMIT}"):
            files = [self._entry(name) for name in contents()]
            folder = {"type": "directory", "oid": "0" * 40, "size": 0, "path": "data"}
            self._json(files if path.endswith("/data") else [folder])
        elif path.startswith(f"/datasets/someone/tales/resolve/{COMMIT}/data/") and name in contents():
            self._file(contents()[name])
        else:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = [unquote(pair.partition("=")[2]) for pair in body.split("&") if pair.startswith("paths=")]
        names = [path.rpartition("/")[2] for path in paths]
        entries = [self._entry(name) for name in names if name in contents()]
        folders = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in paths if path == "data"]
        self._json(entries + folders)

    def _entry(self, name: str) -> dict[str, Any]:
        content = contents()[name]
        digest = hashlib.sha1(content).hexdigest()
        return {"type": "file", "oid": digest, "size": len(content), "path": f"data/{name}"}

    def _file(self, content: bytes) -> None:
        first, last = 0, len(content) - 1
        if wanted := self.headers.get("Range"):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self._end(
            content[first : last + 1], {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        )

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self._end(json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _end(self, body: bytes, headers: dict[str, str]) -> None:
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[dict[str, str]]:
    """Environment of a program for which a local server is the Hub, with the files in the data set someone/tales."""
    pytest.importorskip("huggingface_hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_data_set_of_the_hub_gives_the_bytes_of_the_same_local_files(hub: dict[str, str], tmp_path: Path) -> None:
    here = local_tokens(tmp_path / "here")
    corpus, root = "hf://datasets/someone/tales/data/*.*", tmp_path / "hub"
    code = "import sys; from tests.corpus.test_remote import tokens_of; tokens_of(sys.argv[1], Path(sys.argv[2]))"
    code = f"from pathlib import Path; {code}"
    subprocess.run(
        [sys.executable, "-c", code, corpus, root], env=hub | {"DVC_ROOT": str(root)}, check=True, timeout=90
    )
    assert {path.name: path.read_bytes() for path in (root / "tokens").iterdir()} == here
    listing = json.loads((root / "raw/corpus/train/remote.json").read_text())
    assert listing[0]["url"] == f"hf://datasets/someone/tales@{COMMIT}/data/a.txt"


def test_mistakes_on_the_hub_name_the_address(hub: dict[str, str]) -> None:
    code = "import sys; from gpt2core.corpus import remote; remote.find(sys.argv[1])"
    for address, message in {
        "hf://datasets/nobody/none/a.txt": "no such bucket, data set, or file",
        "hf://openai-community/gpt2/a.txt": "names no data set",
        "hf://datasets/": "names no data set",
        "hf://datasets/only": "names no data set",
    }.items():
        done = subprocess.run(
            [sys.executable, "-c", code, address], env=hub, stderr=subprocess.PIPE, text=True, timeout=60
        )  # fmt: skip
        assert f"UserError: {address}: {message}" in done.stderr


@pytest.mark.parametrize(
    ("address", "library"),
    [("s3://texts/*.jsonl", "s3fs"), ("hf://datasets/someone/tales/*.jsonl", "huggingface_hub")],
)
def test_a_server_that_does_not_answer_is_named_and_no_key(address: str, library: str) -> None:
    """Port 9 of this machine, where nothing listens."""
    pytest.importorskip(library)
    code = "import sys; from gpt2core.corpus import remote; remote.find(sys.argv[1])"
    nothing = "http://127.0.0.1:9"
    env = os.environ | {
        "AWS_ENDPOINT_URL": nothing, "HF_ENDPOINT": nothing, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, address], env=env, stderr=subprocess.PIPE, text=True, timeout=120
    )  # fmt: skip
    (message,) = (line for line in done.stderr.splitlines() if "UserError: " in line)
    assert f"{address}: cannot be read (" in message
    assert "is the server reachable?" in message and "ACCESS_KEY" not in message
