"""From the raw corpus to a tokenizer and two token shards, part by part and in parallel.

A task is a part, or many parts of small files. The shards of finished tasks are in
`$DVC_ROOT/.checkpoints/tokenize/<key>`, outside the stage's output (which DVC deletes before each run): a killed run
continues there, and a finished task is not computed again. The key is a hash of all that decides the bytes. The number
of processes is not part of it: the tasks depend on the files alone, and their shards are joined in order.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt2core import config, files, tokenizer
from gpt2core.config.tokenizer import Tokenizer as TokenizerParams
from gpt2core.corpus import remote
from gpt2core.corpus.documents import Part, find_documents
from gpt2core.corpus.lengths import token_counts
from gpt2core.corpus.shards import CONTINUED, Shard, join_shards, shard_writer
from gpt2core.corpus.splits import Corpus, Work, split_pieces
from gpt2core.executor import Executor, open_executor
from gpt2core.tokenizer import Tokenizer, load_tokenizer, read_bpe
from gpt2core.tokenizer.train import count_words, extend_char, merge_words, train_char

PARALLEL_FROM_BYTES = 16 << 20  # below, starting processes takes longer than it saves
LEARN_CHARS = 32 << 20  # training text of the tokenizer at most: more hardly changes the merges
LEARN_SAMPLES = 512  # pieces of it at most
FOLDER_PARTS = 1000  # in one folder: each write looks through its folder for what killed runs have left


def tokenize(
    params: TokenizerParams,
    seed: int,
    raw_dir: Path,
    out_dir: Path,
    processes: int | None = None,
    base_dir: Path | None = None,
) -> dict[str, Any]:
    """Choose or learn the tokenizer on the training split, encode both splits, and return their figures.

    The memory depends on the longest document and the number of processes, plus a few bytes per document; not on the
    size of the corpus.

    Args:
        params: kind of tokenizer, vocabulary size, validation fraction, duplicates and order.
        seed: decides which documents are held out, and their order if it is shuffled.
        raw_dir: the output of `download-data`: `corpus/`, with `gpt2-bpe/` in it for GPT-2's own tokenizer.
        out_dir: gets `train.bin`, `val.bin`, and the tokenizer's files; all or nothing. A second corpus has its two
            shards in `continued/`.
        processes: number of processes; by default one for a small corpus, else Ray's or one per core.
        base_dir: a model directory whose tokenizer is taken; one of characters gets those that it lacks.
    """
    raw = raw_dir / "corpus"
    inputs = find_documents(raw)
    size_bytes = sum(path.stat().st_size for path in inputs) + sum(file.size_bytes for file in remote.listed(raw))
    inputs += remote.listings(raw)
    if processes is None and size_bytes < PARALLEL_FROM_BYTES:
        processes = 1
    checkpoints = config.checkpoints_dir()
    work_dir = checkpoints / "tokenize" / _key(params, seed, raw, inputs, base_dir)
    with open_executor(processes) as executor, files.lock(checkpoints / "tokenize.lock"):
        corpora = {
            name: Corpus(raw / name, params.val_fraction, seed, params.drop_duplicates, executor)
            for name in ("", CONTINUED)
            if not name or (raw / name).is_dir()
        }
        chosen = _tokenizer(params, raw, list(corpora.values()), work_dir / "tokenizer", executor, base_dir)
        for name, corpus in corpora.items():
            _encode(corpus, work_dir / "tokenizer", work_dir / "parts" / name, executor)
        figures: dict[str, Any] = {}
        with files.atomic_dir(out_dir) as folder:
            for name, corpus in corpora.items():
                of_corpus = _join(work_dir / "parts" / name, folder / name, chosen, seed if params.shuffle else None)
                if params.drop_duplicates:
                    of_corpus["dropped_documents"] = corpus.n_dropped
                figures |= {f"{name}_{key}" if name else key: value for key, value in of_corpus.items()}
            shutil.copytree(work_dir / "tokenizer", folder, dirs_exist_ok=True)
        files.remove_dir(work_dir.parent)  # with the leftovers of killed runs with other params
    return figures


def _join(parts: Path, folder: Path, chosen: Tokenizer, shuffle_seed: int | None) -> dict[str, Any]:
    """Join the shards of all parts of a corpus, for either split, and return their figures."""
    folder.mkdir(exist_ok=True)
    shuffled = None if shuffle_seed is None else np.random.default_rng(shuffle_seed)
    train, val = (
        join_shards(folder / f"{split}.bin", sorted((parts / split).glob("*/*.bin")), chosen, order)
        for split, order in (("train", shuffled), ("val", None))
    )
    return _figures(chosen, train, val)


def _key(params: TokenizerParams, seed: int, raw: Path, inputs: list[Path], base_dir: Path | None) -> str:
    """Return a hash of all that decides the bytes of the result: params, seed, inputs, code, and libraries."""
    of_base = [path for path in sorted(base_dir.iterdir()) if path.suffix in (".json", ".txt")] if base_dir else []
    code = [*Path(__file__).parent.glob("*.py"), *Path(tokenizer.__file__).parent.glob("*.py")]
    inputs = inputs + sorted((raw / "gpt2-bpe").glob("*"))
    decisive = {
        "params": params.model_dump(),
        "seed": seed,
        "inputs": {path.relative_to(raw).as_posix(): files.sha256(path) for path in inputs},
        "base": {path.name: files.sha256(path) for path in of_base},
        "code": {path.name: files.sha256(path) for path in sorted(code)},
        "versions": [platform.python_version(), *map(version, ("tiktoken", "regex", "numpy", "pyarrow"))],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _tokenizer(
    params: TokenizerParams,
    raw: Path,
    corpora: list[Corpus],
    folder: Path,
    executor: Executor,
    base_dir: Path | None,
) -> Tokenizer:
    """Return the tokenizer of the base or of the params, saved in a folder from which the processes read it."""
    if folder.exists():
        return load_tokenizer(folder)
    if base_dir is not None:
        chosen = load_tokenizer(base_dir)
        if not chosen.has_every_text:
            chosen = extend_char(chosen, _all_characters(corpora, executor))
    else:
        match params.kind:
            case "bpe":
                chosen = merge_words(_words(corpora[0], executor), params.vocab_size)
            case "char":
                chosen = train_char(_all_characters(corpora, executor))
            case "gpt2":
                chosen = read_bpe(raw / "gpt2-bpe" / "encoder.json", raw / "gpt2-bpe" / "vocab.bpe")
    with files.atomic_dir(folder) as temporary:
        chosen.save(temporary)
    return chosen


def _all_characters(corpora: list[Corpus], executor: Executor) -> Iterator[str]:
    """Yield the characters of each task, of both splits: validation may have a character that training lacks."""
    for corpus in corpora:
        yield from executor.map(_characters, ((work,) for work in corpus.tasks()))


def _words(corpus: Corpus, executor: Executor) -> Counter[str]:
    """Count the words of the training split; for a large corpus, LEARN_CHARS of them spread evenly over its text."""
    max_chars = [corpus.n_chars] * len(corpus.parts)
    if corpus.n_chars > LEARN_CHARS:
        train_chars = executor.map(_train_chars, ((work,) for work in corpus.tasks()))
        max_chars = _spread(list(chain.from_iterable(train_chars)))
    most = iter(max_chars)
    chosen = ([entry for entry in zip(work, most, strict=False) if entry[1]] for work in corpus.tasks())
    sampled = (tuple(zip(*entries, strict=True)) for entries in chosen if entries)
    words: Counter[str] = Counter()
    for task_words in executor.map(_count_words, sampled):
        words.update(task_words)
    return words


def _spread(train_chars: list[int]) -> list[int]:
    """Return how many characters each part gives: LEARN_CHARS in all, in proportion to what it has.

    Less than a sample is left to the next part, so that few parts of a huge corpus are read.
    """
    if (n_chars := sum(train_chars)) <= LEARN_CHARS:
        return train_chars
    gives: list[int] = []
    seen = given = 0
    for part_chars in train_chars:
        seen += part_chars
        owed = seen * LEARN_CHARS // n_chars - given
        gives.append(min(owed, part_chars) if owed >= min(part_chars, LEARN_CHARS // LEARN_SAMPLES) else 0)
        given += gives[-1]
    return gives


def _train_chars(work: Work) -> list[int]:
    return [sum(len(piece.text) for split, piece in split_pieces([entry]) if split == "train") for entry in work]


def _count_words(work: Work, max_chars: Sequence[int]) -> dict[str, int]:
    """Count the words of the training split, in at most `max_chars` characters of each part."""
    return dict(count_words(text for entry, most in zip(work, max_chars, strict=True) for text in _texts(entry, most)))


def _texts(entry: tuple[Part, Sequence[int]], left_chars: int) -> Iterator[str]:
    for split, piece in split_pieces([entry]):
        if split == "train":
            yield piece.text[:left_chars]
            left_chars -= len(piece.text)
            if left_chars <= 0:
                return


def _characters(work: Work) -> str:
    return "".join(sorted(set().union(*(piece.text for _, piece in split_pieces(work)))))


def _encode(corpus: Corpus, tokenizer_dir: Path, parts: Path, executor: Executor) -> None:
    """Write the shards of each task into `train/` and `val/` of a folder, unless they exist."""
    folders = [parts / "train", parts / "val"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)

    def missing() -> Iterator[tuple[Any, ...]]:
        for number, work in enumerate(corpus.tasks()):
            name = f"{number // FOLDER_PARTS:06d}/{number:09d}.bin"
            train, val = (folder / name for folder in folders)
            if not (train.exists() and val.exists()):
                yield work, str(tokenizer_dir), str(train), str(val)
            else:
                bar.update()

    with tqdm(desc="tokenize", total=corpus.n_tasks, unit="part", leave=False, disable=None) as bar:
        for _ in executor.map(_encode_task, missing()):
            bar.update()


def _encode_task(work: Work, tokenizer_dir: str, train_path: str, val_path: str) -> None:
    chosen = _load(tokenizer_dir)
    with shard_writer(Path(train_path), chosen) as train, shard_writer(Path(val_path), chosen) as val:
        for split, piece in split_pieces(work):
            (train if split == "train" else val).add(piece)


@functools.lru_cache(maxsize=1)
def _load(tokenizer_dir: str) -> Tokenizer:
    return load_tokenizer(tokenizer_dir)


def _figures(chosen: Tokenizer, train: Shard, val: Shard) -> dict[str, Any]:
    return {
        "vocab_size": chosen.vocab_size,
        "train_tokens": train.n_tokens,
        "train_documents": train.n_documents,
        "train_bytes": train.n_bytes,
        "val_tokens": val.n_tokens,
        "val_documents": val.n_documents,
        "val_bytes": val.n_bytes,
        "bytes_per_token": round((train.n_bytes + val.n_bytes) / (train.n_tokens + val.n_tokens), 4),
        "unigram_entropy_nats": round(unigram_entropy_nats(train), 4),
    }


def unigram_entropy_nats(shard: Shard) -> float:
    """Return the entropy of the token frequencies: the loss of the best model without context."""
    counts = token_counts(shard)
    p = counts[counts > 0] / shard.n_tokens
    return float(-(p * np.log(p)).sum())
