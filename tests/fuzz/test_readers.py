"""Every reader, with many changed files each: a right value, or one error that names the file.

The inputs are the same in each run; GPT2CORE_FUZZ_CASES draws another number. `PAST_FAILURES` are inputs that once made
a reader fail.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2core import files
from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.checkpoint.tf_checkpoint import TFCheckpoint
from gpt2core.checkpoint.verify import verify
from gpt2core.corpus import documents, shards
from gpt2core.corpus.documents import Piece
from gpt2core.errors import UserError
from gpt2core.evaluation.judges import questions
from gpt2core.evaluation.rating.ratings import read_responses
from gpt2core.model import GPT
from gpt2core.params import load_params
from gpt2core.tasks import instructions, labeled_texts
from gpt2core.tokenizer import Tokenizer, load_tokenizer
from gpt2core.tokenizer.train import train_bpe
from tests.fuzz.mutations import FUZZ, hostile, reads
from tests.small import config_and_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
MAX_S = 5.0
MAX_GROWTH_BYTES = 500 << 20

CSV = b'label,text\nham,"See you at five"\nspam,"WIN 1000, call ""now"""\nham,Ok\nspam,Free\n'
TSV = b'ham\tSee you at five\nspam\tWIN 1000 " call\nham\tOk\nspam\tFree\n'
JSONL = b'{"label": "ham", "text": "See you"}\n{"label": "spam", "text": "WIN \\u00e9"}\n{"label": 1, "text": "x"}\n'
INSTRUCTIONS = b'[{"instruction": "Say a.", "input": "", "output": "a"}, {"instruction": "Say b.", "output": "b"}]'
RESPONSES = b'[{"instruction": "Say a.", "input": "", "output": "a", "response": "b", "base_response": "c"}]'
DOCUMENTS = b'{"text": "A tale."}\n{"text": "Another\\n tale.", "id": 3}\n'
TALES = b"A tale.\n<|endoftext|>\nAnother tale, of two lines.\nHere.\n<|endoftext|>"

# name of the file, its valid content, how it is read
TEXTS: list[tuple[str, bytes, Callable[[Path], object]]] = [
    ("table.csv", CSV, labeled_texts.read_table),
    ("table.tsv", TSV, labeled_texts.read_table),
    ("table.jsonl", JSONL, labeled_texts.read_table),
    ("entries.json", INSTRUCTIONS, instructions.read),
    ("entries.jsonl", INSTRUCTIONS[1:-1].replace(b"}, {", b"}\n{"), instructions.read),
    ("responses.json", RESPONSES, read_responses),
    ("responses.csv", b"instruction,input,output,response\nSay a.,,a,b\n", read_responses),
    ("documents.jsonl", DOCUMENTS, lambda path: [*map(list, map(documents.read, documents.plan(path)))]),
    ("tales.txt", TALES, lambda path: [*map(list, map(documents.read, documents.plan(path)))]),
]
PAST_FAILURES = {
    "table.csv": [b"label,text\nham,Ok, thanks\nspam,x\n", b"label,text\n" + b"ham," + b"x" * 200_000 + b"\nspam,y\n"],
    "entries.json": [b"\xef\xbb\xbf" + INSTRUCTIONS, b"9" * 5000, b"[" * 200_000],
    "documents.jsonl": [b'{"text": 1}', b"[" * 200_000, b'{"text": "\\ud800"}', b"9" * 5000],
    "tales.txt": [b"\xff\xfea\0", b"", b"\0"],
}


@pytest.fixture(autouse=True)
def _bounds() -> Iterator[None]:
    """No reader may need much more memory than its small file."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH_BYTES


def fuzz(path: Path, content: bytes, read: Callable[[], object], past: list[bytes]) -> None:
    """Read changed contents, and those that failed in the past."""

    def check(changed: bytes) -> None:
        path.write_bytes(changed)
        start_s = time.process_time()
        reads(read, UserError, path)
        assert time.process_time() - start_s < MAX_S

    for changed in (content, *past):
        check(changed)
    FUZZ(given(hostile(content))(check))()


@pytest.mark.parametrize(("name", "content", "read"), TEXTS, ids=[name for name, _, _ in TEXTS])
def test_texts_and_tables(tmp_path: Path, name: str, content: bytes, read: Callable[[Path], object]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    read(path)
    fuzz(path, content, lambda: read(path), PAST_FAILURES.get(name, []))


def test_params(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    content = (ROOT / "params.yaml").read_bytes()
    fuzz(path, content, lambda: load_params(path), [b"a: &a [x]\nb: *a", b"[" * 200_000])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["A tale of two tales, and a tale."] * 3, 262)


def test_token_shards(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "train.bin"
    shards.write_shard(path, [Piece("A tale.", True), Piece("Two tales.", True)], tokenizer)

    def read() -> None:
        shard = shards.open_shard(path)
        shards.documents(shard, tokenizer.eot_id)

    fuzz(path, path.read_bytes(), read, [b"", b"gpt2toks", b"gpt2toks" + b"\xff" * 100])


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"])
def test_tokenizer_files(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    tokenizer.save(tmp_path)
    if name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer.json").unlink()  # it would be read in their place
    path = tmp_path / name
    past = [b"{}", b"[]", b"null", path.read_bytes().replace(b'"a"', b'""')]
    fuzz(path, path.read_bytes(), lambda: load_tokenizer(tmp_path).encode("A tale."), past)


@pytest.mark.parametrize("name", ["model.ckpt.index", "checkpoint", "hparams.json", "encoder.json", "vocab.bpe"])
def test_tensorflow_checkpoints(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "openai"
    shutil.copytree(ROOT / "gpt2core/assets/openai-tiny", folder)
    path = folder / name

    def read() -> None:
        verify(folder)
        if name.endswith(".index"):
            TFCheckpoint(folder / "model.ckpt").verify()

    fuzz(path, path.read_bytes(), read, [b"", b"\xff" * 48])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_model_directories(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    sizes, tokenizer = config_and_tokenizer()
    save_model(folder, GPT(sizes), tokenizer)
    path = folder / name
    content = path.read_bytes()
    head = content[: 8 + int.from_bytes(content[:8], "little")] if name.endswith("safetensors") else content

    def read() -> None:
        verify(folder)
        load_language_model(folder)

    fuzz(path, head, read, [b"{}", b"null", b"[" * 200_000, b"\xff" * 8, b"\0" * 8])


@FUZZ
@given(st.one_of(st.text(max_size=200), st.from_regex(r'\{?"?score"?:? ?-?[0-9.e+]{0,400}/?1?0?0?\}?', fullmatch=True)))
def test_replies_of_judges(reply: str) -> None:
    score = questions.parse_score(reply)
    assert score is None or 0 <= score <= 100
    questions.parse_preference(reply)


@FUZZ
@given(st.one_of(st.binary(max_size=300), hostile(b'{"a": [1, 2.5, "x", null], "b": {"c": true}}')))
def test_json(content: bytes) -> None:
    try:
        files.parse_json(files.decode_text(content, "a.json"), "a.json")
    except UserError as error:
        assert "a.json" in str(error)
