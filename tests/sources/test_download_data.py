"""From names in params to data/raw: whole and checked, or not there at all."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from pathlib import Path

import pytest

from gpt2core.config.data import Data
from gpt2core.corpus.splits import Corpus
from gpt2core.errors import UserError
from gpt2core.sources.download_data import prepare_raw
from gpt2core.sources.raw_corpus import EMBEDDED_TALES, cut_gutenberg
from gpt2core.sources.synthetic import generate_instructions, generate_messages, generate_tales
from gpt2core.tasks import instructions, labeled_texts

SMS = "ham\thello\nspam\twin now\n"
ENTRIES = json.dumps([{"instruction": "Name a colour.", "output": "Red."}])
# Most tests need the embedded data only next to what they are about: each is generated once per seed.
GENERATORS = {
    "download_data.generate_messages": functools.cache(generate_messages),
    "download_data.generate_instructions": functools.cache(generate_instructions),
    "raw_corpus.generate_tales": functools.cache(generate_tales),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, generate in GENERATORS.items():
        monkeypatch.setattr(f"gpt2core.sources.{name}", generate)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("GPT2CORE_MIRROR", raising=False)
    (tmp_path / "own").mkdir()
    return tmp_path


def prepare(
    project: Path,
    corpus: str | list[str] = "embedded",
    classification: str = "embedded",
    entries: str = "embedded",
    tokenizer: str = "bpe",
    seed: int = 1,
    label_column: str | None = None,
) -> dict:
    data = Data(
        corpus=corpus,
        classification=classification,
        instructions=entries,
        classification_label_column=label_column,
        classification_text_column=None,
    )
    return prepare_raw(data, tokenizer, seed, project / "raw", project / "own")


def names(project: Path) -> set[str]:
    return {p.relative_to(project / "raw").as_posix() for p in (project / "raw").rglob("*") if p.is_file()}


def own(project: Path, name: str, content: str | bytes) -> str:
    path = project / "own" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return f"own/{name}"


# --- embedded ---


def test_embedded_data_is_what_the_generators_write(project: Path) -> None:
    figures = prepare(project, seed=7)
    assert (
        names(project)
        == {"corpus/train/tales.txt", "classification.jsonl", "instructions.json"}
        == figures["sha256"].keys()
    )
    corpus = Corpus(project / "raw" / "corpus", 0.1, seed=1)
    pieces = [piece for split in ("train", "val") for piece in corpus.pieces(split)]
    assert sorted(piece.text for piece in pieces) == sorted(generate_tales(7, EMBEDDED_TALES))
    assert all(piece.ends_document for piece in pieces)
    assert labeled_texts.read_table(project / "raw" / "classification.jsonl") == generate_messages(7)
    assert instructions.read(project / "raw" / "instructions.json") == generate_instructions(7)
    assert 1e6 < figures["corpus_bytes"] < 2e6
    assert figures["messages"] >= 2000
    assert figures["instructions"] >= 1100


def test_the_seed_decides_the_bytes(project: Path) -> None:
    first = prepare(project, seed=1)
    for generate in GENERATORS.values():
        generate.cache_clear()
    assert prepare(project, seed=1) == first
    other = prepare(project, seed=2)
    assert all(other["sha256"][name] != sha256 for name, sha256 in first["sha256"].items())


# --- the registry ---


def test_the_real_seeds(project: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", str(mirror.resolve()))
    figures = prepare(project, "the-verdict", "sms-spam-collection", "instruction-data", tokenizer="gpt2")
    assert names(project) == {
        "corpus/train/the-verdict.txt", "corpus/gpt2-bpe/encoder.json", "corpus/gpt2-bpe/vocab.bpe",
        "classification.jsonl",
        "instructions.json",
    }  # fmt: skip
    verdict = (project / "raw" / "corpus" / "train" / "the-verdict.txt").read_bytes()
    assert verdict == (mirror / "the-verdict" / "the-verdict.txt").read_bytes()
    assert (figures["messages"], figures["message_classes"], figures["instructions"]) == (5574, 2, 1100)
    assert not [path for path in (project / ".checkpoints" / "downloads").rglob("*") if path.suffix != ".lock"]


def test_the_real_novels_are_cut_and_two_are_held_out(
    project: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", str(mirror.resolve()))
    prepare(project, "novels")
    corpus = project / "raw" / "corpus"
    assert {path.name for path in (corpus / "val").iterdir()} == {"1342-0.txt", "1661.txt"}
    assert len(list((corpus / "train").iterdir())) == 21
    for path in corpus.rglob("*.txt"):
        text = path.read_bytes().decode()
        assert "\r" not in text
        assert "\ufeff" not in text
        assert "OF THE PROJECT GUTENBERG" not in text
        assert "OF THIS PROJECT GUTENBERG" not in text
        assert "gutenberg.org/license" not in text.lower()
        assert len(text) > 0.9 * (mirror / "novels" / path.name).stat().st_size - 25_000  # the licence has 19 KB
    assert (
        "It is a truth universally acknowledged" in (corpus / "val" / "1342-0.txt").read_text(encoding="utf-8")[:5000]
    )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("marks", ["***{} OF THE {} X***", "*** {} OF THIS {} X, by Y ***"])
def test_gutenberg_cut(tmp_path: Path, marks: str, end: str) -> None:
    start, stop = (marks.format(word, "PROJECT GUTENBERG EBOOK") for word in ("START", "END"))
    lines = [
        "\ufeffThe licence",
        start,
        "",
        "Chapter 1",
        "",
        "*** a line of stars ***",
        "End.",
        "",
        stop,
        "More licence",
    ]
    (tmp_path / "1.txt").write_bytes(end.join(lines).encode())
    assert cut_gutenberg(tmp_path / "1.txt") == "Chapter 1\n\n*** a line of stars ***\nEnd.\n"


def test_gutenberg_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("Chapter 1\n")
    with pytest.raises(UserError, match=r"1\.txt: no text between"):
        cut_gutenberg(tmp_path / "1.txt")


# --- data/own ---


def test_own_files(project: Path) -> None:
    text = own(project, "text.txt", "\ufeffone\r\ntwo é\r\n<|endoftext|>\r\nthree\r\n")
    figures = prepare(project, text, own(project, "sms.tsv", SMS), own(project, "entries.json", ENTRIES))
    raw = project / "raw"
    assert (raw / "corpus" / "train" / "text.txt").read_bytes() == "one\ntwo é\n<|endoftext|>\nthree\n".encode()
    assert labeled_texts.read_table(raw / "classification.jsonl") == [("ham", "hello"), ("spam", "win now")]
    assert json.loads((raw / "instructions.json").read_text())[0]["input"] == ""
    assert (figures["corpus_files"], figures["messages"], figures["instructions"]) == (1, 2, 1)


def test_an_own_folder_is_a_corpus_of_its_texts(project: Path) -> None:
    own(project, "books/a.txt", "a")
    own(project, "books/b.txt", "b")
    own(project, "books/notes.md", "c")
    prepare(project, "own/books")
    assert {name for name in names(project) if "corpus" in name} == {"corpus/train/a.txt", "corpus/train/b.txt"}


def test_a_glob_takes_only_files_of_documents(project: Path) -> None:
    own(project, "README.md", "about this folder")
    with pytest.raises(UserError, match=r"no such file of the kind \.txt") as error:
        prepare(project, "own/*")
    assert "nothing yet" in str(error.value)
    own(project, "a.txt", "a")
    prepare(project, "own/*")
    assert {name for name in names(project) if "corpus" in name} == {"corpus/train/a.txt"}


def test_an_own_corpus_of_other_forms_is_taken_as_it_is(project: Path) -> None:
    rows = '{"text": "one"}\n{"text": "two"}\n'
    contents = {"x/a.jsonl": rows.encode(), "x/b.jsonl.gz": gzip.compress(rows.encode()), "y/a.jsonl": rows.encode()}
    for name, content in contents.items():
        own(project, name, content)
    prepare(project, "own/*/*.jsonl*")
    for name, content in contents.items():
        assert (project / "raw" / "corpus" / "train" / name).read_bytes() == content
    prepare(project, "own/x/*.gz")
    assert {name for name in names(project) if "corpus" in name} == {"corpus/train/x/b.jsonl.gz"}


def test_a_list_brings_each_source_into_its_own_folder(project: Path) -> None:
    own(project, "a.txt", "one")
    own(project, "books/a.txt", "two")
    prepare(project, ["own/a.txt", "embedded", "own/books"])
    assert {name for name in names(project) if "corpus" in name} == {
        "corpus/train/000/a.txt", "corpus/train/001/tales.txt", "corpus/train/002/a.txt",
    }  # fmt: skip


def test_a_file_by_its_address_comes_from_the_mirror_or_the_network(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = b'{"text": "one"}\n{"text": "two"}\n'
    (project / "mirror" / "example.org").mkdir(parents=True)
    (project / "mirror" / "example.org" / "a b.jsonl").write_bytes(rows)
    monkeypatch.setenv("GPT2CORE_MIRROR", str(project / "mirror"))
    monkeypatch.setattr("gpt2core.sources.download._download", _no_network)
    digest = hashlib.sha256(rows).hexdigest()
    url = "https://example.org/some/a%20b.jsonl"
    prepare(project, url)
    assert (project / "raw" / "corpus" / "train" / "a b.jsonl").read_bytes() == rows
    assert f"no hash is pinned; append #sha256={digest}" in capsys.readouterr().err
    prepare(project, f"{url}#sha256={digest}")
    assert "no hash is pinned" not in capsys.readouterr().err
    with pytest.raises(UserError, match="wrong content, SHA-256"):
        prepare(project, f"{url}#sha256={'0' * 64}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://example.org/a.jsonl", "must be the address of a file"),
        ("https://example.org/", "must be the address of a file"),
        ("https://example.org/a.jsonl#md5=12", "only sha256= and 64 hexadecimal digits"),
        ("https://example.org/a.zip", "a.zip: must be a file of the kind .txt"),
        ("own/*.jsonl", "no such file"),
        ("own/*/../../x.jsonl", "must name a file in"),
    ],
)
def test_a_wrong_address_or_glob_is_refused(project: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        prepare(project, ["embedded", name])
    assert str(error.value).startswith("params.yaml: data.corpus: ")
    assert message in str(error.value)


def test_a_text_longer_than_a_block_is_copied_whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2core.files.BLOCK_BYTES", 7)
    text = "".join(f"line {i} é\r\n" for i in range(1000))
    prepare(project, own(project, "long.txt", text))
    copied = (project / "raw" / "corpus" / "train" / "long.txt").read_bytes().decode()
    assert copied == text.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("key", "name", "content", "message"),
    [
        ("corpus", "a.txt", "", "a.txt: the file is empty"),
        ("corpus", "a.txt", " \n ", "a.txt: the file is empty"),
        ("corpus", "a.txt", b"caf\xe9 au lait", "a.txt: byte 3 is not UTF-8"),
        ("corpus", "a.txt", "text".encode("utf-16"), "a.txt: byte 0 is not UTF-8"),
        (
            "corpus",
            "a.pdf",
            "text",
            "a.pdf: must be a file of the kind .txt, .jsonl (both also with .gz or .zst appended) or .parquet",
        ),
        ("corpus", "a.jsonl", "\n\n", "a.jsonl: the file is empty"),
        ("corpus", "a.jsonl", '{"body": "text"}', "a.jsonl, row 1: must be a JSON object with the document under"),
        ("corpus", "a.txt.gz", b"text", "a.txt.gz: damaged or cut short"),
        ("corpus", "a.parquet", b"text", "a.parquet: not a Parquet file"),
        ("corpus", "folder/a.md", "text", "folder: no file of documents in this folder (.txt"),
        ("classification", "a.tsv", "", "a.tsv: the file is empty"),
        (
            "classification",
            "a.tsv",
            "ham\thi\nHam\tho\n",
            "a.tsv, row 2: label 'Ham' is 'ham' of row 1 but for capitals",
        ),
        ("classification", "a.csv", "a,b\n1,2\n", "a.csv, row 1: no column label"),
        (
            "classification",
            "a.xlsx",
            "x",
            "a.xlsx: must be a file of the kind .tsv, .csv, .jsonl, .parquet, .txt, no suffix",
        ),
        ("entries", "a.json", "{}", "a.json: must be a list"),
        ("entries", "a.json", '[{"output": "x"}]', "a.json, entry 1: the key 'instruction' is missing"),
        ("entries", "a.json", "[", "a.json: not JSON"),
    ],
)
def test_bad_input_leaves_what_was_there(
    project: Path, key: str, name: str, content: str | bytes, message: str
) -> None:
    prepare(project)
    before = {path: (project / "raw" / path).read_bytes() for path in names(project)}
    value = own(project, name, content)
    with pytest.raises(UserError) as error:
        prepare(project, **{key: "own/folder" if "/" in name else value})
    assert message in str(error.value)
    assert {path: (project / "raw" / path).read_bytes() for path in names(project)} == before
    assert {path.name for path in project.iterdir()} == {"own", "raw", ".checkpoints"}


def test_wrong_names_are_all_said_at_once(project: Path) -> None:
    own(project, "there.tsv", SMS)
    with pytest.raises(UserError) as error:
        prepare(project, "shakespear", "own/gone.tsv", "own/../own/there.tsv")
    corpus, messages, entries = str(error.value).split("\n")
    assert corpus.startswith("params.yaml: data.corpus: no corpus source is called 'shakespear'")
    assert messages.startswith("params.yaml: data.classification:")
    assert messages.endswith("there is: own/there.tsv")
    assert entries.startswith("params.yaml: data.instructions: 'own/../own/there.tsv' must name a file in")
    assert not (project / "raw").exists()


def test_a_download_that_fails_leaves_nothing_but_what_it_can_go_on_with(
    project: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = project / "mirror" / "the-verdict"
    copy.mkdir(parents=True)
    (copy / "the-verdict.txt").write_bytes((mirror / "the-verdict" / "the-verdict.txt").read_bytes()[::-1])
    monkeypatch.setenv("GPT2CORE_MIRROR", str(copy.parent))
    monkeypatch.setattr("gpt2core.sources.download._download", _no_network)
    with pytest.raises(UserError, match="wrong content, SHA-256 is .* and not the expected b41e41a6"):
        prepare(project, "the-verdict")
    assert not (project / "raw").exists()
    assert not [p for p in (project / ".checkpoints").rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_download_outlives_a_later_source_that_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {name: json.dumps({"text": name}).encode() for name in ("a.jsonl", "b.jsonl")}
    mirror = project / "mirror" / "example.org"
    mirror.mkdir(parents=True)
    monkeypatch.setenv("GPT2CORE_MIRROR", str(mirror.parent))
    monkeypatch.setattr("gpt2core.sources.download._download", _no_network)
    urls = [f"https://example.org/{name}#sha256={hashlib.sha256(row).hexdigest()}" for name, row in rows.items()]
    (mirror / "a.jsonl").write_bytes(rows["a.jsonl"])
    with pytest.raises(UserError, match=r"b\.jsonl could not be fetched"):
        prepare(project, urls)
    (mirror / "a.jsonl").rename(mirror / "b.jsonl")
    (mirror / "b.jsonl").write_bytes(rows["b.jsonl"])
    prepare(project, urls)  # the mirror has no a.jsonl any more
    train = project / "raw" / "corpus" / "train"
    assert {path.name: path.read_bytes() for path in train.rglob("*.jsonl")} == rows
    assert not [path for path in (project / ".checkpoints" / "downloads").rglob("*") if path.suffix != ".lock"]


def test_own_files_are_looked_at_before_anything_is_fetched(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[object] = []
    monkeypatch.setattr("gpt2core.sources.download.fetch", lambda *args: fetched.append(args))
    with pytest.raises(UserError, match="bad.txt: byte .* not UTF-8"):
        prepare(project, ["https://example.org/a.jsonl", own(project, "bad.txt", b"caf\xe9 au lait")])
    assert not fetched


def _no_network(*_: object) -> None:
    from gpt2core.sources.download import _Failed

    raise _Failed("no connection")
