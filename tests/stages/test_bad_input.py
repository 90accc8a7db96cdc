"""What each stage says to input that is not as it should be: one clear error, and nothing half-written."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2core import runtime
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.corpus.shards import write_shard
from gpt2core.corpus.splits import Piece
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.params import read_values
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe

ROOT = Path(__file__).parents[2]
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
ARGUMENTS = {"fetch_openai_weights": ["tiny"], "convert": ["tiny"]}
TINY = read_values(ROOT / "profiles/tiny.yaml")
TALE = "The keeper of the harbour took lamp {i} to the tower, and the lamp was lit at {i} o'clock.\n"
TALES = "<|endoftext|>\n".join(TALE.format(i=i) for i in range(40))
ENTRY = {"instruction": "Sort these.", "input": "3, 1", "output": "1, 3"}
RESPONSE = {**ENTRY, "response": "1, 3", "base_response": "3"}

Stage = Callable[..., str]


class Folder:
    """A project's folder, with the profile `tiny` made smaller still."""

    def __init__(self, root: Path):
        self.root = root
        self.values = copy.deepcopy(TINY)
        (root / "data/own").mkdir(parents=True)
        self.params({"pretrain.context": 32, "pretrain.n_positions": 128, "tokenizer.vocab_size": 270})

    def params(self, values: dict[str, Any]) -> None:
        """Change values of params.yaml, named as `section.key`."""
        for name, value in values.items():
            section, _, key = name.rpartition(".")
            (self.values[section] if section else self.values)[key] = value
        self.write("params.yaml", self.values)  # JSON is YAML, and written in a tenth of the time

    def write(self, name: str, content: Any) -> None:
        """Bytes and text as they are, anything else as JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def tree(self) -> dict[str, str]:
        """Each file's hash, and each folder; without locks, which are not data."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if not name.startswith((".checkpoints", ".locks")):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("GPT2CORE_MIRROR", raising=False)
    return Folder(tmp_path)


@pytest.fixture
def fails(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Run a stage that must end in an error; give its message. The folder is as it was before."""

    def run(stage: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"stages/{stage}.py", *ARGUMENTS.get(stage, [])])
        before = folder.tree()
        with pytest.raises(SystemExit) as ended:
            runtime.stage_main(import_module(f"stages.{stage}").main)
        message = ended.value.code
        assert isinstance(message, str), "a stage that fails must say why"  # Python prints it and exits with 1
        assert message.startswith("error: ")
        for word in words:
            assert word in message
        assert folder.tree() == before, "something is half-written"
        return message

    return run


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TALES], 270)


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model `pretrained` and a `classifier`."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.vocab_size, n_positions=256, n_embd=16, n_layer=1, n_head=2)
    save_model(folder / "pretrained", GPT(config), tokenizer)
    save_model(folder / "classifier", GPTClassifier(config, ("ham", "spam")), tokenizer)
    return folder


@pytest.fixture
def with_models(folder: Folder, models: Path) -> Folder:
    shutil.copytree(models, folder.root / "models")
    return folder


@pytest.fixture
def with_tokens(folder: Folder, tokenizer: Tokenizer) -> Folder:
    """Sound shards, for a test to spoil."""
    shards(folder, tokenizer, [TALES], [TALES[:2000]])
    return folder


def shards(folder: Folder, tokenizer: Tokenizer, train: list[str], val: list[str]) -> None:
    out = folder.root / "data/tokens"
    out.mkdir(parents=True, exist_ok=True)
    for name, texts in (("train", train), ("val", val)):
        write_shard(out / f"{name}.bin", (Piece(text, True) for text in texts), tokenizer)
    tokenizer.save(out)


# -- Every stage: params ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_wrong_params_stop_before_any_work_with_all_errors_at_once(
    folder: Folder, fails: Stage, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is there that a stage reads: params are looked at first."""
    folder.params(
        {
            "seed": "one",
            "tokenizer.vocabsize": 512,
            "pretrain.n_head": 5,
            "pretrain.context": 4096,
            "pretrain.lr": "fast",
            "finetune_classify.trainable": "some",
            "judge.kind": "openai",
        }
    )
    message = fails(stage, "params.yaml")
    for name in ("seed", "tokenizer.vocabsize", "pretrain.n_head", "pretrain.context", "pretrain.lr",
                 "finetune_classify.trainable", "judge.kind"):  # fmt: skip
        assert len(re.findall(rf"^\W*{re.escape(name)}: ", message, re.MULTILINE)) == 1, name
    assert not (folder.root / "mlflow.db").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_seeds_that_no_generator_takes(folder: Folder, fails: Stage, stage: str) -> None:
    folder.params({"seed": 2**64, "finetune_classify.seeds": [2**64]})
    fails(stage, "seed: ", "finetune_classify.seeds")


@pytest.mark.parametrize("content", ["", "- a list\n", "seed: [1\n", b"\xff\xfe", "seed: 1\nseed: 2\n", "42"])
@pytest.mark.parametrize("stage", STAGES)
def test_params_that_are_no_sections(folder: Folder, fails: Stage, stage: str, content: str | bytes) -> None:
    folder.write("params.yaml", content)
    fails(stage, "params.yaml")


@pytest.mark.parametrize("stage", STAGES)
def test_missing_params(folder: Folder, fails: Stage, stage: str) -> None:
    (folder.root / "params.yaml").unlink()
    fails(stage, "params.yaml", "no such file")


@pytest.mark.parametrize("stage", ["tokenize", "pretrain", "convert", "finetune_classify", "finetune_instruct",
                                   "llm_judge_eval"])  # fmt: skip
def test_missing_inputs(fails: Stage, stage: str) -> None:
    message = fails(stage)
    assert "data/" in message
    assert "no such" in message or "no .txt" in message


# -- download-data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", "", ["empty.txt", "empty"]),
        ("blank.txt", " \n\n \t", ["blank.txt", "empty"]),
        ("latin.txt", "Tür\n".encode("latin-1"), ["latin.txt", "UTF-8"]),
        ("utf16.txt", "A tale\n".encode("utf-16"), ["utf16.txt", "UTF-8"]),
        ("tale.pdf", "A tale", ["tale.pdf", ".txt"]),
    ],
)
def test_download_data_own_corpus(folder: Folder, fails: Stage, name: str, content: Any, words: list[str]) -> None:
    folder.write(f"data/own/{name}", content)
    folder.params({"data.corpus": f"own/{name}"})
    fails("download_data", *words)


def test_download_data_own_folder_without_texts(folder: Folder, fails: Stage) -> None:
    folder.write("data/own/books/cover.png", b"\x89PNG")
    folder.params({"data.corpus": "own/books"})
    fails("download_data", "books", ".txt")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("sms.tsv", "", ["sms.tsv", "empty"]),
        ("sms.tsv", "ham\tTür\n".encode("latin-1"), ["sms.tsv", "UTF-8"]),
        ("sms.tsv", "ham\thi\nspam win now\n", ["sms.tsv", "row 2", "tab"]),
        ("sms.tsv", "ham\thi\nspam\twin\n\tno\n", ["sms.tsv", "row 3", "label is empty"]),
        ("sms.tsv", "ham\thi\nspam\t \n", ["sms.tsv", "row 2", "empty"]),
        ("sms.tsv", "ham\thi\nham\tho\n", ["sms.tsv", "'ham'", "two classes"]),
        ("sms.csv", "label,body\nham,hi\n", ["sms.csv", "row 1", "text", "body", "data.classification_text_column"]),
        ("sms.csv", "ham,hi\nspam,win\n", ["sms.csv", "row 1", "label"]),
        ("sms.csv", "label,text\nham,hi\nspam\n", ["sms.csv", "row 3", "1 column"]),
        ("sms.csv", 'label,text\nham,"hi\n', ["sms.csv", "quotation mark"]),
        ("sms.csv", "label,text\nspam,hi\nSPAM,win\n", ["sms.csv", "row 3", "'SPAM'", "row 2"]),
        ("sms.jsonl", '{"text": "hi", "tag": 1}\n', ["sms.jsonl", "row 1", "tag", "data.classification_label_column"]),
        ("sms.jsonl", '{"text": "hi", "label": null}\n', ["sms.jsonl", "row 1", "None"]),
        ("sms.parquet", "PAR1", ["sms.parquet", "no Parquet file"]),
    ],
)
def test_download_data_own_messages(folder: Folder, fails: Stage, name: str, content: Any, words: list[str]) -> None:
    folder.write(f"data/own/{name}", content)
    folder.params({"data.classification": f"own/{name}"})
    fails("download_data", *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["not JSON"]),
        ("[{", ["not JSON", "line 1"]),
        (json.dumps([{**ENTRY, "output": "Tür"}], ensure_ascii=False).encode("latin-1"), ["UTF-8"]),
        ({"instruction": "a", "output": "b"}, ["list", "object"]),
        ([], ["empty"]),
        ([ENTRY, {"input": "", "output": "b"}], ["entry 2", "'instruction'"]),
        ([ENTRY, ENTRY, {"instruction": "a"}], ["entry 3", "'output'"]),
        ([ENTRY, "a"], ["entry 2", "str"]),
        ([{**ENTRY, "output": 3}], ["entry 1", "output", "3"]),
        ([{**ENTRY, "instruction": " "}], ["entry 1", "instruction", "empty"]),
        ([{**ENTRY, "input": None}], ["entry 1", "input", "None"]),
    ],
)
def test_download_data_own_instructions(folder: Folder, fails: Stage, content: Any, words: list[str]) -> None:
    folder.write("data/own/tasks.json", content)
    folder.params({"data.instructions": "own/tasks.json"})
    fails("download_data", "tasks.json", *words)


def test_download_data_names_every_source_that_is_unknown(folder: Folder, fails: Stage) -> None:
    folder.params(
        {"data.corpus": "the-verdikt", "data.classification": "own/none.tsv", "data.instructions": "own/../params.yaml"}
    )
    fails(
        "download_data", "data.corpus: ", "the-verdict", "data.classification: ", "none.tsv",
        "data.instructions: ", "own/",
    )  # fmt: skip


def test_download_data_keeps_what_was_there(folder: Folder, fails: Stage) -> None:
    folder.write("data/raw/classification.jsonl", "from before\n")
    folder.write("data/own/empty.txt", "")
    folder.params({"data.corpus": "own/empty.txt"})
    fails("download_data", "empty.txt")  # which also compares the folder with what it was


def test_download_data_without_the_mirror_that_was_named(
    folder: Folder, fails: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2CORE_MIRROR", "no/such/folder")
    folder.params({"data.corpus": "the-verdict"})
    fails("download_data", "GPT2CORE_MIRROR", "no/such/folder")


# -- tokenize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        ("\n \n", ["empty"]),
        ("<|endoftext|>\n \n<|endoftext|>\n", ["empty"]),
        ("Tür\n".encode("latin-1"), ["tales.txt", "UTF-8"]),
        ("a b", ["vocab_size", "270"]),
    ],
)
def test_tokenize(folder: Folder, fails: Stage, content: Any, words: list[str]) -> None:
    folder.write("data/raw/corpus/train/tales.txt", content)
    fails("tokenize", *words)


def test_tokenize_with_nothing_left_for_validation(folder: Folder, fails: Stage) -> None:
    folder.write("data/raw/corpus/train/tales.txt", "Oneword")
    folder.params({"tokenizer.kind": "char"})
    fails("tokenize", "val.bin", "too short")


def test_tokenize_without_the_files_of_gpt2s_tokenizer(folder: Folder, fails: Stage) -> None:
    folder.write("data/raw/corpus/train/tales.txt", TALES)
    folder.params({"tokenizer.kind": "gpt2"})
    fails("tokenize", "gpt2-bpe", "no such file")


# -- pretrain --------------------------------------------------------------------------------------------------------


def test_pretrain_on_a_truncated_shard(with_tokens: Folder, fails: Stage) -> None:
    for name in ("train.bin", "val.bin"):
        path = with_tokens.root / "data/tokens" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-2])
        fails("pretrain", name, "damaged", "bytes", "dvc repro")
        path.write_bytes(whole[:30])
        fails("pretrain", name)
        path.write_bytes(b"")
        fails("pretrain", name)
        path.write_bytes(whole)


def test_pretrain_on_something_else_than_a_shard(with_tokens: Folder, fails: Stage) -> None:
    with_tokens.write("data/tokens/train.bin", TALES)
    fails("pretrain", "train.bin", "not a token shard")


def test_pretrain_on_a_shard_of_another_version(with_tokens: Folder, fails: Stage) -> None:
    path = with_tokens.root / "data/tokens/train.bin"
    path.write_bytes(path.read_bytes()[:8] + b"\x63" + path.read_bytes()[9:])
    fails("pretrain", "train.bin", "version 99")


def test_pretrain_on_a_corpus_shorter_than_a_context(folder: Folder, fails: Stage, tokenizer: Tokenizer) -> None:
    shards(folder, tokenizer, ["The lamp."], [TALES])
    fails("pretrain", "training split", "context of 32", "pretrain.context")


def test_pretrain_without_its_tokenizer(with_tokens: Folder, fails: Stage) -> None:
    for name in ("vocab.json", "tokenizer.json"):
        (with_tokens.root / "data/tokens" / name).unlink()
    fails("pretrain", "vocab.json")


def test_pretrain_stops_where_the_loss_is_not_finite(with_tokens: Folder, fails: Stage) -> None:
    with_tokens.params({"pretrain.lr": 1e30, "pretrain.warmup_steps": 0, "pretrain.max_steps": 5})
    message = fails("pretrain", "step ", "learning rate")
    assert re.search(r"step \d+: the (loss|gradient norm) is (nan|inf)", message)


# -- fetch-openai-weights and convert --------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["fetch_openai_weights", "convert"])
@pytest.mark.parametrize("arguments", [[], ["125M"], ["tiny", "124M"]], ids=str)
def test_an_openai_size_that_is_none(
    fails: Stage, stage: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARGUMENTS, stage, arguments)
    fails(stage, "124M", "tiny")


@pytest.fixture
def fetched(folder: Folder) -> Path:
    shutil.copytree(ROOT / "gpt2core/assets/openai-tiny", folder.root / "data/openai/tiny")
    return folder.root / "data/openai/tiny"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("model.ckpt.data-00000-of-00001", flip_a_byte, ["checksum"]),
        ("model.ckpt.data-00000-of-00001", lambda path: os.truncate(path, 1000), []),
        ("model.ckpt.index", flip_a_byte, []),
        ("model.ckpt.index", lambda path: os.truncate(path, 100), []),
        ("hparams.json", lambda path: path.write_text("[]"), ["JSON object"]),
        ("hparams.json", lambda path: path.write_text("{}"), ["n_vocab"]),
        ("encoder.json", lambda path: path.write_text("{}"), []),
        ("vocab.bpe", lambda path: path.write_text("#version: 0.2\nonly-one\n"), ["line 2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # what a function prints as differs between processes
)
def test_convert_of_a_damaged_file(
    fetched: Path, fails: Stage, name: str, spoil: Callable[[Path], Any], words: list[str]
) -> None:
    spoil(fetched / name)
    fails("convert", "data/openai/tiny", *words)


@pytest.mark.parametrize(
    "name", ["model.ckpt.data-00000-of-00001", "model.ckpt.index", "hparams.json", "encoder.json", "vocab.bpe"]
)
def test_convert_without_a_file(fetched: Path, fails: Stage, name: str) -> None:
    (fetched / name).unlink()
    fails("convert", name)


# -- finetune-classify -----------------------------------------------------------------------------------------------

MESSAGES = [{"label": label, "text": f"{label} number {i}"} for i in range(40) for label in ("ham", "spam")]


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        ("Tür".encode("latin-1"), ["UTF-8"]),
        ('{"label": "ham", "text": "hi"}\n{"label": "ham"', ["row 2", "not JSON"]),
        (jsonl([MESSAGES[0], {"label": "ham"}]), ["row 2", "text"]),
        (jsonl([MESSAGES[0], ["ham", "hi"]]), ["row 2"]),
        (jsonl([*MESSAGES, {"label": "eggs", "text": "hi"}]), ["too few messages", "'eggs' has 1"]),
        (jsonl([*MESSAGES, {"label": 1.5, "text": "hi"}]), ["row 81", "1.5"]),
        (jsonl([*MESSAGES, {"label": "ham", "text": ""}]), ["row 81", "empty"]),
        (jsonl(MESSAGES[:4]), ["too few messages"]),
        (jsonl([MESSAGES[0], MESSAGES[1]] * 500), ["too few messages"]),
        (jsonl(MESSAGES[::2]), ["every row is labeled 'ham'"]),
    ],
)
def test_finetune_classify_messages(with_models: Folder, fails: Stage, content: Any, words: list[str]) -> None:
    with_models.write("data/raw/classification.jsonl", content)
    message = fails("finetune_classify", *words)
    assert "too few" in message or "classification.jsonl" in message


@pytest.mark.parametrize("stage", ["finetune_classify", "finetune_instruct"])
@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("no-such", ["models/no-such", "no such model directory"]),
        ("classifier", ["models/classifier", "is a classifier"]),
        ("mute", ["models/mute", "vocab.json"]),
        ("cut", ["models/cut", "model.safetensors"]),
        ("empty", ["models/empty", "config.json"]),
    ],
)
def test_finetuning_from_a_base_that_is_none(
    with_models: Folder, fails: Stage, stage: str, base: str, words: list[str]
) -> None:
    root = with_models.root / "models"
    (root / "empty").mkdir()
    for name in ("mute", "cut"):
        shutil.copytree(root / "pretrained", root / name)
    for name in ("vocab.json", "tokenizer.json"):
        (root / "mute" / name).unlink()
    os.truncate(root / "cut/model.safetensors", 2000)
    with_models.write("data/raw/classification.jsonl", jsonl(MESSAGES))
    with_models.write("data/raw/instructions.json", ENTRIES)
    with_models.params({f"{stage}.base": base})
    fails(stage, *words)


# -- finetune-instruct -----------------------------------------------------------------------------------------------

ENTRIES = [{"instruction": f"Write {i}.", "input": "", "output": str(i)} for i in range(60)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["instructions.json", "not JSON"]),
        ({"entries": ENTRIES}, ["instructions.json", "list", "object"]),
        ([*ENTRIES, {"input": "a", "output": "b"}], ["instructions.json", "entry 61", "'instruction'"]),
        (ENTRIES[:2], ["too few instructions"]),
        ([{**entry, "input": "the same"} for entry in ENTRIES], ["too few instructions", "1 different"]),
        ([{**entry, "instruction": f"{i} " + "long " * 300} for i, entry in enumerate(ENTRIES)], ["256", "shorten"]),
    ],
)
def test_finetune_instruct_entries(with_models: Folder, fails: Stage, content: Any, words: list[str]) -> None:
    with_models.write("data/raw/instructions.json", content)
    with_models.params({"finetune_instruct.val_fraction": 0.1, "finetune_instruct.test_fraction": 0.1})
    fails("finetune_instruct", *words)


# -- llm-judge-eval --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "train", "words"),
    [
        ("", [ENTRY], ["test.json", "not JSON"]),
        ({"a": RESPONSE}, [ENTRY], ["test.json", "list"]),
        ([], [ENTRY], ["test.json", "nothing"]),
        ([RESPONSE, ENTRY], [ENTRY], ["test.json", "entry 2", "'response'"]),
        ([{**ENTRY, "response": "x"}], [ENTRY], ["test.json", "entry 1", "'base_response'"]),
        ([{**RESPONSE, "response": None}], [ENTRY], ["test.json", "entry 1", "'response'"]),
        ([{**RESPONSE, "output": ""}], [ENTRY], ["test.json", "entry 1", "'output'", "blank"]),
        ([RESPONSE], [], ["train.json"]),
        ([RESPONSE], [{"instruction": "a", "input": ""}], ["train.json", "entry 1", "'output'"]),
        (b"\xff", [ENTRY], ["test.json", "UTF-8"]),
    ],
)
def test_llm_judge_eval(folder: Folder, fails: Stage, test: Any, train: Any, words: list[str]) -> None:
    folder.write("data/responses/test.json", test)
    folder.write("data/responses/train.json", train)
    fails("llm_judge_eval", *words)


# -- As a program ----------------------------------------------------------------------------------------------------


@pytest.fixture
def program(folder: Folder) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    def run(stage: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"stages.{stage}", *ARGUMENTS.get(stage, [])]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=folder.root, env=env, capture_output=True, text=True, timeout=120)

    return run


def test_a_stage_ends_with_1_and_its_message(
    folder: Folder, program: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    folder.write("data/own/sms.tsv", "ham\thi\nHam\tno\n")
    folder.params({"data.classification": "own/sms.tsv"})
    done = program("download_data")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: data/own/sms.tsv, row 2: label 'Ham' is 'ham' of row 1 but for capitals; write one\n"
    )
