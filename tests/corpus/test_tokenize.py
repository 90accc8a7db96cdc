"""From a raw corpus to shards: the same bytes on any number of processes and after any number of kills."""

from __future__ import annotations

import contextlib
import glob
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2core.config.tokenizer import Tokenizer as TokenizerParams
from gpt2core.corpus import documents
from gpt2core.corpus import tokenize as tokenize_module
from gpt2core.corpus.shards import documents as documents_of
from gpt2core.corpus.shards import open_shard
from gpt2core.corpus.splits import Corpus
from gpt2core.corpus.tokenize import tokenize
from gpt2core.executor import LocalProcesses
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from tests.corpus.corpora import BOOK, folder_with

SEPARATOR = f"\n{END_OF_TEXT}\n"
TALES = [f"Tale {i} of the lantern:{' and so on' * (i % 30)}." for i in range(400)]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def params(kind: str = "bpe", vocab_size: int = 280, drop_duplicates: bool = False, shuffle: bool = False):
    return TokenizerParams(
        kind=kind, vocab_size=vocab_size, val_fraction=0.1, drop_duplicates=drop_duplicates, shuffle=shuffle
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mixed_corpus(root: Path) -> Path:
    """Raw data of three forms, in small parts once PART_BYTES is small."""
    corpus = folder_with(root / "raw" / "corpus", a=SEPARATOR.join(TALES), b=BOOK)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TALES[::-1])
    (corpus / "train" / "c.jsonl").write_text(rows)
    (corpus / "train" / "d.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    return root / "raw"


def test_parts_of_many_files_are_in_many_folders_and_in_order(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with all of them would make the time of each write grow with their number."""
    texts = [f"Tale {i} of the lantern." for i in range(25)]
    folder_with(root / "raw" / "corpus", **{f"t{i:02d}": text for i, text in enumerate(texts)})
    params = TokenizerParams(kind="bpe", vocab_size=280, val_fraction=0.1)
    monkeypatch.setattr(tokenize_module, "FOLDER_PARTS", 4)
    monkeypatch.setattr(documents, "PART_BYTES", 30)  # one file
    sizes: list[int] = []
    join = tokenize_module.join_shards

    def spy(path: Path, parts: list[Path], *arguments: Any) -> Any:
        sizes.extend(Counter(part.parent for part in parts).values())
        return join(path, parts, *arguments)

    monkeypatch.setattr(tokenize_module, "join_shards", spy)
    tokenize(params, 1, root / "raw", root / "tokens", processes=1)
    assert sizes == [4] * 6 + [1] + [4] * 6 + [1]
    tokenizer = load_tokenizer(root / "tokens")
    train = open_shard(root / "tokens" / "train.bin")
    found = [tokenizer.decode(ids.tolist()) for ids in documents_of(train, tokenizer.eot_id)]
    assert [text for text in texts if text in found] == found  # in the files' order


def test_small_files_are_read_together_and_give_the_bytes_of_one_file(root: Path) -> None:
    texts = [f"Tale {i} of the lantern and the {'x' * (i % 7)} key." for i in range(3000)]
    corpus = folder_with(root / "many" / "corpus", **{f"t{i:04d}": text for i, text in enumerate(texts)})
    assert Corpus(corpus, 0.1, seed=1).n_tasks == 1
    one = folder_with(root / "one" / "corpus")
    (one / "train" / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    params = TokenizerParams(kind="bpe", vocab_size=280, val_fraction=0.1)
    metrics = [tokenize(params, 1, root / name, root / f"{name}-tokens") for name in ("many", "one")]
    assert metrics[0] == metrics[1]
    assert contents(root / "many-tokens") == contents(root / "one-tokens")


def test_the_verdict(root: Path, mirror: Path) -> None:
    """5,145 GPT-2 tokens, as everybody counts them, and one end of text a split."""
    raw = root / "raw"
    (raw / "corpus" / "train").mkdir(parents=True)
    (raw / "corpus" / "train" / "v.txt").write_bytes((mirror / "the-verdict" / "the-verdict.txt").read_bytes())
    (raw / "corpus" / "gpt2-bpe").symlink_to(mirror / "gpt2-bpe")
    metrics = tokenize(params("gpt2"), 1, raw, root / "tokens")
    assert metrics["train_tokens"] + metrics["val_tokens"] == 5145 + 2
    assert metrics["train_bytes"] + metrics["val_bytes"] == 20479


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_tokenize_repeats_to_the_byte(root: Path, kind: str) -> None:
    folder_with(root / "raw" / "corpus", a=BOOK)
    metrics = [tokenize(params(kind), 7, root / "raw", root / out) for out in ("a", "b")]
    assert metrics[0] == metrics[1]
    assert contents(root / "a") == contents(root / "b")
    shard = open_shard(root / "a" / "train.bin")
    p = np.bincount(shard.tokens) / shard.n_tokens
    entropy = -sum(x * np.log(x) for x in p if x)
    assert metrics[0]["unigram_entropy_nats"] == pytest.approx(entropy, abs=1e-4)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_the_bytes_do_not_depend_on_parts_and_processes(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    raw = mixed_corpus(root)
    chosen = params(kind)
    whole = tokenize(chosen, 7, raw, root / "whole")
    monkeypatch.setattr(documents, "PART_BYTES", 2000)  # here; the processes are told their parts
    assert tokenize(chosen, 7, raw, root / "one", processes=1) == whole
    assert tokenize(chosen, 7, raw, root / "three", processes=3) == whole
    assert contents(root / "whole") == contents(root / "one") == contents(root / "three")
    assert not (root / ".checkpoints" / "tokenize").exists()


@pytest.mark.parametrize("beside", ["a small file", "a val folder"])
def test_a_compressed_part_teaches_its_share_of_a_large_corpus(
    root: Path, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    monkeypatch.setattr(tokenize_module, "LEARN_CHARS", 3000)
    corpus = folder_with(root / "raw" / "corpus")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TALES)
    (corpus / "train" / "b.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    if beside == "a small file":
        (corpus / "train" / "a.txt").write_text("a small part. ")
    else:
        (corpus / "val").mkdir()
        (corpus / "val" / "a.txt").write_text(BOOK)
    tokenize(params(vocab_size=300), 7, root / "raw", root / "tokens")
    assert len(load_tokenizer(root / "tokens").encode(" lantern and so on")) <= 4 + 1


def test_a_large_corpus_teaches_learn_chars_from_everywhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {letter: f" {letter * 9}" * 2000 for letter in "abcd"}
    corpus = Corpus(folder_with(root / "corpus", **texts), 0.1, seed=1)
    whole = tokenize_module._words(corpus, LocalProcesses())
    assert 0.89 < sum(len(word) * n for word, n in whole.items()) / 80_000 < 0.91
    monkeypatch.setattr(tokenize_module, "LEARN_CHARS", 8000)
    words = tokenize_module._words(corpus, LocalProcesses())
    assert sum(len(word) * n for word, n in words.items()) == 8000
    assert {letter: words[f" {letter * 9}"] for letter in "abcd"} == pytest.approx(dict.fromkeys("abcd", 200), rel=0.02)


@pytest.mark.parametrize(
    "train_chars",
    [[1000] * 100_000, [8 << 20] * 12_500, [14, 200 << 20], [0, 1 << 40, 0], [1000, 9 << 20, 0, 70_000] * 50],
    ids=["small files", "huge", "one archive", "one part", "mixed"],
)
def test_parts_of_any_sizes_give_learn_chars_together(train_chars: list[int]) -> None:
    gives = tokenize_module._spread(train_chars)
    learn_chars = tokenize_module.LEARN_CHARS
    assert all(0 <= give <= has for give, has in zip(gives, train_chars, strict=True))
    assert 0.99 * learn_chars < sum(gives) <= learn_chars
    assert sum(give > 0 for give, has in zip(gives, train_chars, strict=True) if has > 1 << 20) <= 512


def test_shuffled_and_without_duplicates(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = mixed_corpus(root)
    chosen = params(drop_duplicates=True, shuffle=True)
    metrics = tokenize(chosen, 7, raw, root / "whole")
    monkeypatch.setattr(documents, "PART_BYTES", 2000)
    assert tokenize(chosen, 7, raw, root / "parts", processes=2) == metrics
    assert metrics["train_documents"] + metrics["val_documents"] == len(TALES) + 1
    assert metrics["dropped_documents"] == 2 * len(TALES)

    def texts(name: str) -> list[list[str]]:
        tokenizer = load_tokenizer(root / name)
        shards = (open_shard(root / name / f"{split}.bin") for split in ("train", "val"))
        return [[tokenizer.decode(ids.tolist()) for ids in documents_of(s, tokenizer.eot_id)] for s in shards]

    whole, parts = texts("whole"), texts("parts")
    assert sorted(whole[0] + whole[1]) == sorted([*TALES, BOOK])
    assert sorted(parts[0]) == sorted(whole[0])
    assert parts[1] == whole[1]  # the order of the validation is the corpus's
    assert [t for t in TALES if t in whole[0]] != [t for t in whole[0] if t != BOOK]
    other_seed = tokenize(chosen, 8, raw, root / "other")
    assert other_seed["train_documents"] == metrics["train_documents"]
    assert contents(root / "other")["train.bin"] != contents(root / "whole")["train.bin"]


def test_a_finished_task_is_not_done_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = mixed_corpus(root)
    monkeypatch.setattr(documents, "PART_BYTES", 2000)
    tokenize(params(), 7, raw, root / "once")
    encode, done, learned = tokenize_module._encode_task, [], []

    def breaks_down(*task: object) -> None:
        if len(done) == 10:
            raise RuntimeError("the lights went out")
        done.append(task[2])
        encode(*task)

    def merge(*args: object) -> Tokenizer:
        learned.append(args)
        return merge_words(*args)

    merge_words = tokenize_module.merge_words
    monkeypatch.setattr(tokenize_module, "merge_words", merge)
    monkeypatch.setattr(tokenize_module, "_encode_task", breaks_down)
    with pytest.raises(RuntimeError, match="the lights went out"):
        tokenize(params(), 7, raw, root / "twice")
    assert not (root / "twice").exists()
    first = list(done)

    def counts(*task: object) -> None:
        done.append(task[2])
        encode(*task)

    monkeypatch.setattr(tokenize_module, "_encode_task", counts)
    tokenize(params(), 7, raw, root / "twice")
    assert len(first) == 10
    assert len(done) == len(set(done)) > 20, "a task was done twice"
    assert len(learned) == 1
    assert contents(root / "once") == contents(root / "twice")


@pytest.mark.parametrize("change", ["params", "seed", "input"])
def test_other_params_or_inputs_do_not_go_on_with_the_old_parts(root: Path, change: str) -> None:
    raw = mixed_corpus(root)
    inputs = documents.find_documents(raw / "corpus")
    key = tokenize_module._key(params(), 7, raw / "corpus", inputs, None)
    if change == "input":
        inputs[0].write_bytes(inputs[0].read_bytes().replace(b"Tale 7", b"Tale 8"))
    other = tokenize_module._key(
        params(shuffle=change == "params"), 8 if change == "seed" else 7, raw / "corpus", inputs, None
    )
    assert other != key


def test_success_removes_what_killed_runs_of_other_params_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_down(*_: object) -> None:
        raise RuntimeError("the lights went out")

    with monkeypatch.context() as patch:
        patch.setattr(tokenize_module, "_encode_task", breaks_down)
        with pytest.raises(RuntimeError, match="the lights went out"):
            tokenize(params(vocab_size=270), 7, mixed_corpus(root), root / "tokens")
    assert list((root / ".checkpoints" / "tokenize").iterdir())
    tokenize(params(), 7, root / "raw", root / "tokens")
    assert not (root / ".checkpoints" / "tokenize").exists()


SCRIPT = """
import sys
from pathlib import Path
from gpt2core.config.tokenizer import Tokenizer
from gpt2core.corpus.tokenize import tokenize

if __name__ == "__main__":
    root, processes = Path(sys.argv[1]), int(sys.argv[2])
    params = Tokenizer(kind=sys.argv[3], vocab_size=512, val_fraction=0.1, drop_duplicates=True, shuffle=True)
    tokenize(params, 1, root / "raw", root / "tokens", processes)
"""


def start(root: Path, processes: int, kind: str = "bpe") -> subprocess.Popen:
    (root / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "DVC_ROOT": str(root)}
    return subprocess.Popen([sys.executable, root / "run.py", root, str(processes), kind], env=environment)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_leaves_no_process_behind(root: Path) -> None:
    tales = (f"Tale {i % 997} of the lantern{' and so on' * (i % 100)}." for i in range(140_000))
    folder_with(root / "raw" / "corpus", a=SEPARATOR.join(tales))  # 75 MB: 10 parts

    def finished() -> int:
        return len(
            glob.glob(f"{root}/.checkpoints/tokenize/*/parts/train/*/*.bin")
        )  # Path.glob fails where one vanishes

    for wanted in (1, 4):  # killed twice
        run = start(root, 2)
        while finished() < wanted:
            assert run.poll() is None
            time.sleep(0.02)
        workers = children(run.pid)
        run.send_signal(signal.SIGKILL)
        run.wait()
        deadline_s = time.monotonic() + 20
        while any(map(is_running, workers)):
            assert time.monotonic() < deadline_s, "a worker outlived its parent"
            time.sleep(0.05)
        assert not (root / "tokens").exists()
    assert start(root, 2).wait() == 0
    often_killed = contents(root / "tokens")
    assert start(root, 1).wait() == 0
    assert contents(root / "tokens") == often_killed


def memory_mb(pid: int) -> float:
    """RssAnon of a process and its children, and what they share once: the largest RssFile + RssShmem of one."""
    found = []
    for each in (pid, *children(pid)):
        with contextlib.suppress(OSError):  # it has just ended
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            found.append({line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")})
    shared = [status.get("RssFile", 0) + status.get("RssShmem", 0) for status in found]
    return (sum(status.get("RssAnon", 0) for status in found) + max(shared, default=0)) / 1024


@pytest.mark.slow
def test_200_mb_take_less_than_600_mb_of_memory(root: Path) -> None:
    train = root / "raw" / "corpus" / "train"
    train.mkdir(parents=True)
    with (train / "a.txt").open("w") as file:
        for i in range(320_000):
            file.write(f"Tale {i} of the lantern: {TALES[i % 400]} {TALES[i * 7 % 400]}{SEPARATOR}")
            file.write(BOOK[i % 5000 : i % 5000 + 300])
    assert (train / "a.txt").stat().st_size > 200e6
    run, peak_mb = start(root, 2), 0.0
    while run.poll() is None:
        with contextlib.suppress(OSError):
            peak_mb = max(peak_mb, memory_mb(run.pid))
        time.sleep(0.02)
    assert run.returncode == 0
    assert open_shard(root / "tokens" / "train.bin").n_documents > 250_000
    assert 100 < peak_mb < 600


def test_a_killed_worker_ends_in_a_message(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder_with(root / "raw" / "corpus", a=SEPARATOR.join(f"Tale {i}{' of the lantern' * 40}." for i in range(30_000)))
    run = start(root, 2)
    while not (found := [pid for pid in children(run.pid) if b"spawn_main" in cmdline(pid)]):
        assert run.poll() is None
        time.sleep(0.02)
    os.kill(found[0], signal.SIGKILL)
    assert run.wait(timeout=120) == 1
    assert "a worker process was killed" in capfd.readouterr().err


def test_a_script_that_works_when_imported_is_told_so(root: Path) -> None:
    """A spawned process imports the script first: it would wait for its parent's lock, and its parent for it."""
    folder_with(root / "raw" / "corpus", a=SEPARATOR.join(TALES))
    (root / "run.py").write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    run = subprocess.run(
        [sys.executable, root / "run.py", root, "2", "bpe"],
        env={**os.environ, "DVC_ROOT": str(root)},
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and 'if __name__ == "__main__":' in run.stderr
    assert not (root / "tokens").exists()


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
