"""Downloads from a real server on the loopback, over TLS and without, that does all that servers do wrong."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gpt2core.errors import UserError
from gpt2core.sources import download
from gpt2core.sources.download import Retry, fetch, fetch_all
from gpt2core.sources.registry import Asset, File, find

BODY = bytes(range(256)) * 800  # 200 KB
FAST = Retry(first_wait_s=0.001, longest_wait_s=0.01, connect_timeout_s=10, read_timeout_s=10)


class Server(ThreadingHTTPServer):
    """Serves `files`; `troubles` are worked off one a request: how this request goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/asset/file.bin": BODY}
        self.etag: str | None = '"v1"'
        self.troubles: list[str] = []
        self.requests: list[dict[str, str]] = []  # the headers of each
        self.scheme = "http"
        self.closers: list[Callable[[], object]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about; anything else is a mistake in this file."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        trouble = server.troubles.pop(0) if server.troubles else ""
        if trouble.isdecimal():
            return self.answer(int(trouble), b"", {"Retry-After": "0"} if trouble == "429" else {})
        if trouble.startswith("redirect "):
            return self.answer(302, b"", {"Location": trouble.split()[1]})
        if self.path not in server.files:
            return self.answer(404, b"", {})
        body = server.files[self.path]
        headers = {"ETag": server.etag} if server.etag else {}
        if trouble.startswith("encoded "):
            headers["Content-Encoding"] = trouble.split()[1]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        is_same = self.headers.get("If-Range", server.etag) == server.etag
        if start and is_same and trouble != "ignore range":
            if start >= len(body):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            start -= trouble == "wrong range"
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.answer(206, body[start:], headers, cut=trouble == "cut")
        if trouble == "wrong":
            body = body[::-1]
        return self.answer(200, body, headers, cut=trouble == "cut", hang=trouble == "hang")

    def answer(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False, hang: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut or hang else body)
        if hang:
            threading.Event().wait(1)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        for close in server.closers:
            close()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "certificate.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + signed.public_bytes(pem))
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("GPT2CORE_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


@pytest.fixture
def http(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A mirror over HTTP."""
    with serving(Server()) as server:
        monkeypatch.setenv("GPT2CORE_MIRROR", server.url)
        yield server


@pytest.fixture
def https(project: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A public source over HTTPS with a trusted certificate."""
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.scheme = "https"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with serving(server):
        yield server


def asset(*urls: str, body: bytes = BODY, pinned: bool = True, member: str | None = None) -> Asset:
    sha256, size = (hashlib.sha256(body).hexdigest(), len(body)) if pinned else (None, None)
    return Asset("asset", "corpus", "for tests", "MIT", (File("file.bin", urls, sha256, size, member),))


def get(asset: Asset, project: Path, retry: Retry = FAST) -> bytes:
    out_path = project / "out" / "file.bin"
    fetch(asset, asset.files[0], out_path, retry)
    assert [path.name for path in out_path.parent.iterdir()] == ["file.bin"]
    assert parts(project) == []
    return out_path.read_bytes()


def refusal(asset: Asset, project: Path, retry: Retry = FAST) -> str:
    """The message of the error, after which nothing may lie in the place of the file."""
    out_path = project / "out" / "file.bin"
    with pytest.raises(UserError) as error:
        fetch(asset, asset.files[0], out_path, retry)
    assert not out_path.parent.exists() or list(out_path.parent.iterdir()) == []
    assert "\n" not in str(error.value)
    return str(error.value)


def parts(project: Path) -> list[Path]:
    return sorted((project / ".checkpoints" / "downloads").glob("*.part*"))


# --- HTTP ---


@pytest.mark.parametrize("pinned", [True, False])
def test_a_file_arrives(http: Server, project: Path, pinned: bool) -> None:
    assert get(asset(pinned=pinned), project) == BODY
    assert len(http.requests) == 1


@pytest.mark.parametrize("pinned", [True, False])
def test_a_cut_download_goes_on_where_it_stopped(http: Server, project: Path, pinned: bool) -> None:
    http.troubles = ["cut", "cut"]
    assert get(asset(pinned=pinned), project) == BODY
    first, second, third = http.requests
    assert "Range" not in first
    assert 0 < int(second["Range"][6:-1]) <= len(BODY) // 2 < int(third["Range"][6:-1])
    assert second["If-Range"] == '"v1"'


def test_a_download_that_failed_goes_on_in_the_next_run(http: Server, project: Path) -> None:
    http.troubles = ["cut"]
    message = refusal(asset(), project, replace(FAST, tries=1))
    assert "the connection was cut after" in message
    assert "bytes, 1 tries" in message
    part = parts(project)[0].read_bytes()
    assert part
    assert BODY.startswith(part)
    assert get(asset(), project) == BODY
    assert http.ranges == [None, f"bytes={len(part)}-"]


def test_a_part_of_another_version_is_not_continued(http: Server, project: Path) -> None:
    http.troubles = ["cut"]
    refusal(asset(pinned=False), project, replace(FAST, tries=1))
    http.etag, http.files["/asset/file.bin"] = '"v2"', b"new" + BODY
    assert get(asset(pinned=False), project) == b"new" + BODY


def test_without_validator_and_hash_a_part_is_not_continued(http: Server, project: Path) -> None:
    http.etag, http.troubles = None, ["cut"]
    assert get(asset(pinned=False), project) == BODY
    assert http.ranges == [None, None]


def test_without_validator_a_pinned_part_is_continued_and_a_wrong_whole_starts_over(
    http: Server, project: Path
) -> None:
    http.etag, http.troubles = None, ["cut"]
    refusal(asset(), project, replace(FAST, tries=1))
    part = parts(project)[0]
    part.write_bytes(b"x" + part.read_bytes()[1:])
    assert get(asset(), project) == BODY
    assert [bool(r) for r in http.ranges] == [False, True, False]


def test_a_part_that_is_whole_needs_no_more_bytes(http: Server, project: Path) -> None:
    http.troubles = ["cut"]
    refusal(asset(), project, replace(FAST, tries=1))
    parts(project)[0].write_bytes(BODY)  # as if killed before the file was put in its place
    assert get(asset(), project) == BODY


@pytest.mark.parametrize("trouble", ["ignore range", "wrong range", "500", "503", "429", "408"])
def test_a_trouble_on_the_way_is_got_over(http: Server, project: Path, trouble: str) -> None:
    http.troubles = ["cut", trouble]
    assert get(asset(), project) == BODY


def test_a_server_that_hangs_is_asked_again(http: Server, project: Path) -> None:
    http.troubles = ["hang"]
    assert get(asset(), project, replace(FAST, read_timeout_s=0.3)) == BODY
    assert len(http.requests) == 2


def test_a_server_that_keeps_cutting_ends_in_a_message(http: Server, project: Path) -> None:
    http.etag = None
    http.troubles = ["cut"] * 50
    message = refusal(asset(pinned=False), project)
    assert "the connection was cut after 102,400 bytes" in message
    assert "5 tries" in message
    assert len(http.requests) == 5


def test_tries_are_counted_anew_after_progress(http: Server, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PROGRESS_BYTES", 1)
    monkeypatch.setattr(download, "CHUNK_BYTES", 1024)
    http.troubles = ["cut"] * 6
    assert get(asset(), project, replace(FAST, tries=2)) == BODY


def test_waits_double_and_follow_the_server(http: Server, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits_s: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits_s.append)
    http.troubles = ["500"] * 3 + ["429"]  # the last with Retry-After: 0
    get(asset(), project, Retry(first_wait_s=1, longest_wait_s=3))
    assert waits_s == [1, 2, 3, 0]


def test_the_wrong_hash_is_said_and_nothing_is_kept(http: Server, project: Path) -> None:
    http.troubles = ["wrong"]
    message = refusal(asset(), project)
    assert hashlib.sha256(BODY).hexdigest() in message
    assert hashlib.sha256(BODY[::-1]).hexdigest() in message
    assert parts(project) == []
    assert len(http.requests) == 1


@pytest.mark.parametrize(("status", "reason"), [("404", "404 Not Found, there is no such file"), ("403", "403")])
def test_a_final_status_is_not_asked_for_again(http: Server, project: Path, status: str, reason: str) -> None:
    http.troubles = [status]
    message = refusal(asset(), project)
    assert f"HTTP status {reason}" in message
    assert "GPT2CORE_MIRROR" in message
    assert "data/own" in message
    assert len(http.requests) == 1


def test_an_empty_answer_is_no_file(http: Server, project: Path) -> None:
    http.files["/asset/file.bin"] = b""
    assert "the file is empty" in refusal(asset(pinned=False), project)


def test_without_a_network_the_message_says_what_to_do(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server:
        port = server.server_port
    monkeypatch.setenv("GPT2CORE_MIRROR", f"http://me:secret@127.0.0.1:{port}")
    message = refusal(asset(), project)
    assert "no connection (" in message
    assert "refused" in message
    assert "GPT2CORE_MIRROR" in message
    assert "data/own/" in message
    assert "secret" not in message


def test_four_at_once_fetch_one_file_one_after_the_other(http: Server, project: Path) -> None:
    http.troubles = ["cut"] * 4
    one = asset()
    outs = [project / f"out{i}" / "file.bin" for i in range(4)]
    threads = [threading.Thread(target=fetch, args=(one, one.files[0], out, FAST)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [out.read_bytes() for out in outs] == [BODY] * 4
    assert parts(project) == []


# --- places, in order ---


def test_the_mirror_comes_first_and_the_urls_follow(https: Server, project: Path, monkeypatch) -> None:
    mirror = project / "mirror"
    (mirror / "asset").mkdir(parents=True)
    monkeypatch.setenv("GPT2CORE_MIRROR", "mirror")  # relative to the project, also in an experiment's copy of it
    assert get(asset(f"{https.url}/asset/file.bin"), project) == BODY
    assert len(https.requests) == 1
    (project / "out" / "file.bin").unlink()
    (mirror / "asset" / "file.bin").write_bytes(BODY)
    assert get(asset(f"{https.url}/asset/file.bin"), project) == BODY
    assert len(https.requests) == 1


def test_an_error_lists_every_place(https: Server, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "mirror" / "asset").mkdir(parents=True)
    (project / "mirror" / "asset" / "file.bin").write_bytes(b"other")
    monkeypatch.setenv("GPT2CORE_MIRROR", str(project / "mirror"))
    message = refusal(asset(f"{https.url}/gone", f"{https.url}/lost"), project)
    assert f"{project}/mirror/asset/file.bin: wrong content, SHA-256" in message
    assert hashlib.sha256(b"other").hexdigest() in message
    assert f"{https.url}/gone: HTTP status 404" in message
    assert f"{https.url}/lost: HTTP status 404" in message


def test_a_mirror_that_is_no_folder_is_a_mistake(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", "/no/such/folder")
    assert "GPT2CORE_MIRROR=/no/such/folder: there is no such folder" in refusal(asset(), project)


def test_a_file_that_is_there_already_is_not_fetched_again(http: Server, project: Path) -> None:
    get(asset(), project)
    assert get(asset(), project) == BODY
    assert len(http.requests) == 1


def test_all_files_of_an_asset_or_none(http: Server, project: Path) -> None:
    one = asset().files[0]
    two = replace(asset(), files=(one, replace(one, name="gone.bin")))
    with pytest.raises(UserError, match=r"asset/gone\.bin could not be fetched"):
        fetch_all(two, project / "all", FAST)
    assert not (project / "all").exists()
    http.files["/asset/gone.bin"] = BODY
    fetch_all(two, project / "all", FAST)
    assert sorted(path.name for path in (project / "all").iterdir()) == ["file.bin", "gone.bin"]


def test_openai_files_come_from_a_mirror_under_their_names(http: Server, project: Path) -> None:
    weights = find("openai", "openai-355M")
    unpinned = replace(weights, files=tuple(replace(file, sha256=None, size_bytes=None) for file in weights.files))
    http.files = {f"/openai-355M/{file.name}": file.name.encode() for file in weights.files}
    fetch_all(unpinned, project / "355M", FAST)
    assert {path.name: path.read_text() for path in (project / "355M").iterdir()} == {
        file.name: file.name for file in weights.files
    }


# --- zip ---


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_member_of_a_zip_is_taken_out_and_verified(https: Server, project: Path) -> None:
    https.files["/all.zip"] = zipped({"readme": b"hello", "dir/File": BODY})
    https.troubles = ["cut"]
    assert get(asset(f"{https.url}/all.zip", member="dir/File"), project) == BODY


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>please log in</html>", "not a sound zip"),
        (zipped({"File": BODY})[:-30], "not a sound zip"),
        (zipped({"readme": b"hello"}), "a zip without File"),
        (zipped({"File": BODY[::-1]}), "wrong content, SHA-256"),
        (zipped({"File": bytes(10_000_000)}), "wrong size in the zip, 10,000,000 bytes"),
    ],
)
def test_a_wrong_zip_is_refused(https: Server, project: Path, content: bytes, reason: str) -> None:
    https.files["/all.zip"] = content
    assert reason in refusal(asset(f"{https.url}/all.zip", member="File"), project)
    assert parts(project) == []


# --- TLS ---


def test_a_certificate_that_nobody_trusts_is_refused(
    https: Server, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert "the server's certificate is not valid" in refusal(asset(f"{https.url}/asset/file.bin"), project)
    assert https.requests == []


def test_plain_http_is_for_a_mirror_only(http: Server, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2CORE_MIRROR")
    assert "not an https:// URL" in refusal(asset(f"{http.url}/asset/file.bin"), project)
    assert http.requests == []


def test_a_redirect_may_not_leave_tls(
    https: Server, http: Server, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPT2CORE_MIRROR")
    https.troubles = [f"redirect {http.url}/asset/file.bin"]
    assert "redirects from https to http" in refusal(asset(f"{https.url}/elsewhere"), project)
    assert http.requests == []
    https.troubles = ["redirect /asset/file.bin"]
    assert get(asset(f"{https.url}/elsewhere"), project) == BODY


# --- disk ---


def test_a_full_disk_ends_in_one_sentence_and_the_part_is_continued(http: Server, project: Path) -> None:
    """The limit on file size stands in for a full disk: the kernel refuses the write in the same way."""
    script = (
        "import resource, signal; from pathlib import Path; from gpt2core.sources.registry import *;"
        "from gpt2core.sources.download import fetch; from gpt2core.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "file = File('file.bin'); asset = Asset('asset', 'corpus', '', '', (file,))\n"
        "try: fetch(asset, file, Path('out/file.bin'))\n"
        "except UserError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=project, env=os.environ, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.startswith("the disk is full: out/file.bin could not be written; free some space"), result
    assert result.stdout.count("\n") == 1
    part = parts(project)[0].stat().st_size
    assert 0 < part <= 100_000
    assert get(asset(), project) == BODY
    assert http.ranges == [None, f"bytes={part}-"]


# --- servers that lie, flood, or dawdle ---


def endless(server: Server, chunk: bytes, pause_s: float = 0.0, head: bytes = b"") -> str:
    """Serve an answer of chunks without end on a raw socket next to `server`; return its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()
    server.closers.append(lambda: (stop.set(), listener.close()))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)
            connection.sendall(head)
            while not stop.is_set():
                connection.sendall(chunk)
                stop.wait(pause_s)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_an_endless_answer_ends_one_byte_past_the_size(http: Server, project: Path, monkeypatch) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    monkeypatch.setenv("GPT2CORE_MIRROR", endless(http, chunk, head=CHUNKED))
    largest = 0
    check = download._Part.check

    def watched(self: download._Part, size_bytes: int) -> None:
        nonlocal largest
        largest = max(largest, size_bytes)
        check(self, size_bytes)

    monkeypatch.setattr(download._Part, "check", watched)
    assert "more than the 204,800 bytes" in refusal(asset(), project)
    assert len(BODY) < largest <= len(BODY) + download.CHUNK_BYTES
    assert parts(project) == []


def test_without_a_size_a_download_has_a_cap(http: Server, project: Path, monkeypatch) -> None:
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 100_000)
    monkeypatch.setenv("GPT2CORE_MIRROR", endless(http, b"10\r\n" + b"x" * 16 + b"\r\n", head=CHUNKED))
    assert "more than the 100,000 bytes" in refusal(asset(pinned=False), project)


def test_an_announced_length_past_the_size_is_refused_before_it_arrives(http: Server, project: Path) -> None:
    http.files["/asset/file.bin"] = BODY * 2
    assert "more than the 204,800 bytes" in refusal(asset(), project)


@pytest.mark.parametrize("encoding", ["gzip", "br", "x-nonsense"])
def test_a_compressed_answer_is_refused(http: Server, project: Path, encoding: str) -> None:
    http.troubles = [f"encoded {encoding}"]
    assert f"Content-Encoding: {encoding}" in refusal(asset(), project)


def test_a_trickle_of_bytes_is_given_up(http: Server, project: Path, monkeypatch) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", endless(http, b"1\r\nx\r\n", pause_s=0.01, head=CHUNKED))
    impatient = replace(FAST, tries=2, read_timeout_s=0.2)
    assert "too slow" in refusal(asset(), project, impatient)


def test_a_trickle_of_headers_is_given_up(http: Server, project: Path, monkeypatch) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", endless(http, b"X-A: 1\r\n", pause_s=0.05, head=b"HTTP/1.1 200 OK\r\n"))
    impatient = replace(FAST, tries=2, connect_timeout_s=0.1, read_timeout_s=0.1)
    assert "does not answer in time" in refusal(asset(), project, impatient)


def test_all_tries_together_have_a_deadline(http: Server, project: Path, monkeypatch) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", endless(http, b"1\r\nx\r\n", pause_s=0.01, head=CHUNKED))
    assert "not complete in time" in refusal(asset(), project, replace(FAST, deadline_s=0.3))


@pytest.mark.parametrize("length", ["-1", "9" * 5000, "1e3", "²"])
def test_a_length_that_is_no_number_is_not_believed(http: Server, project: Path, monkeypatch, length: str) -> None:
    body = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + length.encode() + b"\r\n\r\n" + BODY
    monkeypatch.setenv("GPT2CORE_MIRROR", endless(http, b"", head=body + b"x"))
    with pytest.raises(UserError):
        fetch(asset(), asset().files[0], project / "out" / "file.bin", replace(FAST, read_timeout_s=0.2, tries=2))


# --- secrets ---

SECRET = "p4ssw0rd-planted"  # it can be quoted, spaced, or encoded in a message


def test_the_password_of_a_mirror_is_in_no_message_and_no_file(http: Server, project: Path, monkeypatch) -> None:
    http.troubles = ["cut"] * 20
    with_password = http.url.replace("http://", f"http://user:{SECRET}@") + f"/?sig={SECRET}"
    monkeypatch.setenv("GPT2CORE_MIRROR", with_password)
    assert SECRET not in refusal(asset(), project)
    monkeypatch.setenv("GPT2CORE_MIRROR", http.url.replace("http://", f"http://user:{SECRET}@"))
    assert SECRET not in refusal(asset(), project)
    left = parts(project)
    assert len(left) == 2
    for path in left:
        assert SECRET.encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
    http.troubles = []
    assert get(asset(), project) == BODY
    assert (project / "out" / "file.bin").stat().st_mode & 0o444 == 0o444
