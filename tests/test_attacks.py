"""Attacks that once worked, of many kinds: each now gives the right value, or one line."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2core.checkpoint.merge import merge
from gpt2core.checkpoint.model_dir import load, load_language_model
from gpt2core.checkpoint.openai import convert
from gpt2core.checkpoint.peft_adapter import Adapter, adapter_tensors, save_adapter
from gpt2core.checkpoint.verify import verify
from gpt2core.corpus import documents
from gpt2core.errors import UserError
from gpt2core.model.lora import add_lora
from gpt2core.params import load_params
from gpt2core.redact import redacted, secret_in_url
from gpt2core.sources import raw_corpus
from gpt2core.sources.download import Retry, fetch
from gpt2core.sources.registry import Asset, File
from gpt2core.tasks.labeled_texts import read_table
from gpt2core.tracking import store
from tests.fuzz.test_http import Server
from tests.small import reconfigure, retensor, save_small_model

ROOT = Path(__file__).parent.parent
TINY = ROOT / "gpt2core/assets/openai-tiny"
FAST = Retry(tries=1, connect_timeout_s=1, read_timeout_s=1, deadline_s=2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "model")


# -- Folders that are not ours ---------------------------------------------------------------------------------------


def test_a_folder_with_a_config_json_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    app = tmp_path / "app"
    (app / "src").mkdir(parents=True)
    (app / "config.json").write_text('{"port": 80}')
    (app / "src/app.js").write_text("code")
    with pytest.raises(UserError, match="'src' in it is not part of a model directory|'src'"):
        convert(TINY, app)
    assert (app / "src/app.js").read_text() == "code"


def test_a_folder_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", "new/.."):
        with pytest.raises(UserError, match="name a folder to write"):
            convert(TINY, Path(name))
    assert [*tmp_path.iterdir()] == []


# -- Model directories -----------------------------------------------------------------------------------------------

ALIASES = [("num_attention_heads", "n_head"), ("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd")]


@pytest.mark.parametrize(("alias", "key"), [*ALIASES, ("max_position_embeddings", "n_positions")])
def test_other_names_of_sizes_are_read_as_transformers_does(model: Path, alias: str, key: str) -> None:
    transformers = pytest.importorskip("transformers")
    ids = torch.arange(8)[None]
    expected = transformers.AutoModelForCausalLM.from_pretrained(model)(ids).logits
    value = json.loads((model / "config.json").read_text())[key]
    reconfigure(model, {alias: value}, remove=(key, "n_ctx"))
    ours, _ = load_language_model(model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model)(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=1e-4)
    reconfigure(model, {key: value + 1})
    with pytest.raises(UserError, match=f"{alias} .* differs from {key}"):
        load(model)
    assert not verify(model).is_whole


def test_a_number_beyond_float32_is_not_whole(model: Path) -> None:
    name = "transformer.ln_f.weight"
    retensor(model, lambda t: t | {name: torch.full_like(t[name], 1e300, dtype=torch.float64)})
    (problem,) = verify(model).problems
    assert "NaN or infinity" in problem


def test_a_prefix_space_that_libraries_read_differently_is_refused(model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_text(path.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true', 1))
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["add_prefix_space"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="libraries differ"):
        load(model)


def test_an_endless_header_of_weights_is_refused_at_once(model: Path) -> None:
    (model / "model.safetensors").write_bytes((50 << 20).to_bytes(8, "little") + b"{}")
    start_s = time.monotonic()
    with pytest.raises(UserError, match="a header of 52,428,800 bytes"):
        load(model)
    assert time.monotonic() - start_s < 5


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    base, _ = load_language_model(model)
    add_lora(base, rank=2, alpha=4.0, dropout=0.0, targets=["attn.c_attn"])
    save_adapter(tmp_path / "adapter", Adapter(adapter_tensors(base), 2, 4.0, 0.0, ["attn.c_attn"]), "$(touch pwned)")
    return tmp_path / "adapter"


@pytest.mark.parametrize("pattern", [".*" * 90 + "x", r".*\w*" * 20 + "x", "(a|a)*b", "(a+)+b", "a*a*a*b"])
def test_a_pattern_of_ranks_ends_soon(model: Path, adapter: Path, tmp_path: Path, pattern: str) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {pattern: 2}}))
    start_s = time.monotonic()
    with pytest.raises(UserError, match="pattern"):
        merge(model, adapter, tmp_path / "out")
    assert time.monotonic() - start_s < 5


def test_an_adapter_of_nan_makes_no_model(model: Path, adapter: Path, tmp_path: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: torch.full_like(t, float("nan")) for name, t in load_file(path).items()}, path)
    with pytest.raises(UserError, match="NaN or infinity"):
        merge(model, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_command_in_a_message_can_be_copied_safely(adapter: Path) -> None:
    with pytest.raises(UserError) as error:
        load(adapter)
    assert "gpt2core merge '$(touch pwned)' " in str(error.value)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "x\nwarning: forged"}))
    with pytest.raises(UserError) as error:
        load(adapter)
    assert "\n" not in str(error.value) and "gpt2core merge BASE" in str(error.value)


# -- Texts -----------------------------------------------------------------------------------------------------------


def test_a_tsv_row_with_too_many_cells_is_refused_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("label\ttext\tid\nham\thello\tthere friend\t1\nspam\tx\t2\n")
    with pytest.raises(UserError, match=r"row 2: 4 column\(s\), the header has 3"):
        read_table(path)
    path.write_text("label\ttext\nham\thello\tthere\nspam\tx\n")  # a text may hold tabs where nothing follows it
    assert read_table(path)[0].text == "hello\tthere"


def test_a_parquet_text_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    bad = pyarrow.array([b"caf\xe9", b"x"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    table = pyarrow.table({"label": ["ham", "spam"], "text": bad})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match="not UTF-8"):
        read_table(path)
    with pytest.raises(UserError, match="not UTF-8") as error:
        [*map(list, map(documents.read, documents.plan(path)))]
    assert "iconv" not in str(error.value)


@pytest.mark.parametrize("name", ["own/a**", "own/**.txt", "own/._a.txt"])
def test_names_of_own_files_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "._a.txt").write_text("x")
    with pytest.raises(UserError):
        raw_corpus.resolve(name, tmp_path)


# -- Secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://u:pa/SECRET@127.0.0.1:1/x", "http://u:pa#SECRET@h/", "http://u:pa?SECRET@h/", "http://u:SECRET@h:80/a",
        "postgresql://u:pa/SECRET@h/db", "https://h/x?sig=abc,SECRET", "https://h/x?a=1;SECRET", "https://h/x?SECRET",
        "https://h/x?sig=a)SECRET", "http:/u:SECRET@h/", "//u:SECRET@h/x", "http:\\\\u:SECRET@h\\x",
        "https://h/x#access_token=SECRET", "https://h/x#a=1&sig=SECRET", "https://h/x?a=1#token=SECRET",
    ],
)  # fmt: skip
def test_odd_secrets_are_hidden(address: str) -> None:
    shown = redacted(f"no answer from {address} today")
    assert "SECRET" not in shown and shown.endswith(" today")


@pytest.mark.parametrize("address", ["http://h:8080/@user/x", "https://example.org/a?b=1", "see http://h:80/ me@x.org"])
def test_what_is_no_secret_keeps_its_host(address: str) -> None:
    assert "h:80" in redacted(address) or "example.org" in redacted(address)


def test_a_password_with_a_space_is_hidden_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:SEC RET@127.0.0.1:1")
    assert redacted("http://u:SEC RET@127.0.0.1:1 does not answer") == "http://***@127.0.0.1:1 does not answer"


@pytest.mark.parametrize(
    "address",
    [
        "https://h/x.txt?pass=S", "https://h/x.txt?pw=S", "https://h/x?jwt=S", "https://h/x?a=b;sig=S",
        "https:/u:S@h/x", "http://[u:S@h]/", "http:\\\\u:S@h\\x", "https://h/x#access_token=S", "https://h/x?code=S", "https://h/x?sas=S",
    ],
)  # fmt: skip
def test_more_secrets_in_params_are_known(address: str) -> None:
    assert secret_in_url(address)


@pytest.mark.parametrize("address", ["http:/u:PLANTED@h/v1", "//u:PLANTED@h/v1", "http://h/v1#access_token=PLANTED"])
def test_a_misspelled_address_in_params_is_refused_without_its_password(tmp_path: Path, address: str) -> None:
    text = re.sub(r"(?<=  base_url:).*", f' "{address}"', (ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"judge\.base_url.*not allowed in params") as error:
        load_params(tmp_path / "params.yaml")
    assert "PLANTED" not in str(error.value)


def test_a_pinned_hash_is_no_secret() -> None:
    assert redacted(f"https://h/x.txt#sha256={'0' * 64}").endswith("0" * 64)
    assert secret_in_url(f"https://h/x.txt#sha256={'0' * 64}") is None


# -- Params ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("pretrain", "n_layer", "1000000000"), ("pretrain", "batch_size", "10000000000000000000"),
        ("pretrain", "n_embd", "4" + "0" * 30), ("pretrain", "lr", ".inf"), ("pretrain", "sample_prompt", r'"\ud83d"'),
        ("judge", "bootstrap_samples", "1" + "0" * 11), ("judge", "max_retries", "1" + "0" * 30),
        ("judge", "timeout_s", ".inf"), ("judge", "timeout_s", "1e300"), ("judge", "requests_per_minute", "1e-300"),
    ],
)  # fmt: skip
def test_absurd_params_are_refused_by_their_key(tmp_path: Path, section: str, key: str, value: str) -> None:
    lines = (ROOT / "params.yaml").read_text().splitlines()
    start = lines.index(next(line for line in lines if line.startswith(f"{section}:")))
    place = next(n for n in range(start, len(lines)) if lines[n].strip().startswith(f"{key}:"))
    lines[place] = f"  {key}: {value}"
    (tmp_path / "params.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"{section}\.{key}|surrogate|params\.yaml"):
        load_params(tmp_path / "params.yaml")


# -- Servers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 F\r\nLocation: /\xff\xfe\r\n\r\n", b"HTTP/1.1 302 F\r\nLocation: http://[foo/\r\n\r\n",
        b"HTTP/1.1 302 F\r\nLocation: http://127.0.0.1:99999999/\r\n\r\n",
        b"HTTP/1.1 503 B\r\nRetry-After: Mon, 01 Jan 2030 00:00:00 +99999999999999\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 B\r\nRetry-After: Mon, 01 Jan 99999999999 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
    ],
)  # fmt: skip
def test_a_hostile_mirror_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    server.answer = answer
    monkeypatch.setenv("GPT2CORE_MIRROR", server.url)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    file = File("a.txt", (), "0" * 64, 5)
    with pytest.raises(UserError, match=r"a\.txt could not be fetched") as error:
        fetch(Asset("a", "corpus", "d", "l", (file,)), file, tmp_path / "a.txt", FAST)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("mirror", ["~nosuchuser/x", "http://[foo/", "http://127.0.0.1:99999999/"])
def test_a_mirror_that_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", mirror)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    file = File("a.txt", (), "0" * 64, 5)
    with pytest.raises(UserError):
        fetch(Asset("a", "corpus", "d", "l", (file,)), file, tmp_path / "a.txt", FAST)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000, b"\0"])
def test_a_tracking_server_that_is_none_is_found_soon(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    server.answer = answer
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("http", "HTTP"))
    start_s = time.monotonic()
    with pytest.raises(UserError, match="does not answer"):
        store.check(tmp_path)
    assert time.monotonic() - start_s < 10


def test_the_database_of_another_program_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE experiments (id)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    with pytest.raises(UserError, match="is the database of another program"):
        store.check(tmp_path)


# -- Commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", ["", "abc", "-1"])
def test_a_rank_that_is_no_number_is_ignored(rank: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpt2core", "--version"], cwd=ROOT, env=os.environ | {"RANK": rank}, capture_output=True
    )
    assert done.returncode == 0


def test_a_closed_output_is_no_traceback(model: Path) -> None:
    command = f"{sys.executable} -m gpt2core generate {model} --max-new-tokens 2 >&-"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
