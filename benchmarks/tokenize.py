"""Speed of tokenizing, compared with tiktoken in one process, and its memory for a large corpus.

python -m benchmarks.tokenize speed MIRROR     the novels of a mirror, repeated to 200 MB
python -m benchmarks.tokenize memory           a generated corpus of 2 GB

The speed includes all that the stage does: starting processes, counting documents, encoding, joining. tiktoken's is
that of `encode_ordinary` alone, with its own pattern for GPT-2, on texts in memory. The memory is the sum of RssAnon
over all processes, plus what they share, counted once (the largest RssFile + RssShmem of a process), sampled every
50 ms.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import psutil
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from benchmarks import machine
from benchmarks.machine import MB, spread
from gpt2core.config.tokenizer import Tokenizer as TokenizerParams
from gpt2core.corpus.shards import open_shard
from gpt2core.corpus.tokenize import tokenize
from gpt2core.runtime import available_processes
from gpt2core.sources.synthetic import generate_tales
from gpt2core.tokenizer import END_OF_TEXT


@click.group()
def main() -> None:
    """Speed and memory of the stage tokenize."""


@main.command()
@click.argument("mirror", type=click.Path(exists=True, path_type=Path))
@click.option("--megabytes", default=200, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def speed(mirror: Path, megabytes: int, rounds: int) -> None:
    """Print MB/s of text, both sides in turn, median and range; also by CPU time, which other work affects less."""
    with tempfile.TemporaryDirectory() as name:
        root = _project(Path(name))
        corpus = root / "raw" / "corpus"
        (corpus / "train").mkdir(parents=True)
        (corpus / "gpt2-bpe").symlink_to((mirror / "gpt2-bpe").resolve())
        novels = [path.read_text("utf-8-sig") for path in sorted((mirror / "novels").glob("*.txt"))]
        texts = novels * max(1, round(megabytes * MB / sum(len(text.encode()) for text in novels)))
        for number, text in enumerate(texts):
            (corpus / "train" / f"{number:03d}.txt").write_text(text, "utf-8")
        size_mb = sum(path.stat().st_size for path in (corpus / "train").iterdir()) / MB

        plain = machine.gpt2_tokenizer(mirror)
        encoding = tiktoken.Encoding(
            "gpt2", pat_str=r50k_pat_str, mergeable_ranks=plain.ranks, special_tokens={END_OF_TEXT: plain.eot_id}
        )

        def theirs() -> int:
            return sum(len(encoding.encode_ordinary(text)) + 1 for text in texts)

        def ours() -> int:
            figures = tokenize(_params("gpt2"), 1, root / "raw", root / "tokens")
            return figures["train_tokens"] + figures["val_tokens"]

        print(f"{len(texts)} novels, {size_mb:.0f} MB, {available_processes()} processes")
        sides = {"tiktoken, one process": theirs, "the stage": ours}
        runs = machine.in_turn({name: partial(_timed_with_children, side) for name, side in sides.items()}, rounds)
        assert len({n_tokens for results in runs.values() for *_, n_tokens in results}) == 1, runs
        rates = {name: [size_mb / wall_s for wall_s, *_ in results] for name, results in runs.items()}
        for name, results in runs.items():
            cpu = statistics.median(size_mb / cpu_s for _, cpu_s, _ in results)
            print(f"{name:>22}: {spread(rates[name])} MB/s, {cpu:.1f} MB per core-second")
        first, second = map(statistics.median, rates.values())
        print(f"{'ratio':>22}: {second / first:5.2f}")


@main.command()
@click.option("--megabytes", default=2000, show_default=True)
@click.option("--shuffle/--no-shuffle", default=True, show_default=True)
@click.option("--drop-duplicates/--keep-duplicates", default=True, show_default=True)
def memory(megabytes: int, shuffle: bool, drop_duplicates: bool) -> None:
    """Peak memory of all processes, of a corpus of short tales."""
    with tempfile.TemporaryDirectory() as name:
        root = _project(Path(name))
        folder = root / "raw" / "corpus" / "train"
        folder.mkdir(parents=True)
        n_documents = _write_tales(folder, megabytes * MB)
        params = _params("bpe", shuffle, drop_duplicates)
        with machine.peak_of(_processes_bytes, interval_s=0.05) as peak_bytes:
            took, _ = machine.timed(lambda: tokenize(params, 1, root / "raw", root / "tokens"))
        tokens = open_shard(root / "tokens" / "train.bin").n_tokens
        print(f"{megabytes} MB, {n_documents:,} documents, {tokens:,} tokens of training, {took.wall:.0f} s")
        print(f"peak of {available_processes()} processes and the one that started them: {peak_bytes() / MB:.0f} MB")


def _project(root: Path) -> Path:
    os.environ["DVC_ROOT"] = str(root)  # where unfinished work is kept
    return root


def _params(kind: str, shuffle: bool = False, drop_duplicates: bool = False) -> TokenizerParams:
    return TokenizerParams(
        kind=kind, vocab_size=8192 if kind == "gpt2" else 960, val_fraction=0.01, shuffle=shuffle,
        drop_duplicates=drop_duplicates,
    )  # fmt: skip


def _timed_with_children(work: Callable[[], int]) -> tuple[float, float, int]:
    """Run a function; return wall time, CPU time with that of child processes that ended, and its result."""
    before = os.times()
    result = work()
    after = os.times()
    cpu_s = sum(after[:4]) - sum(before[:4])  # user and system, of this process and of its children
    return after.elapsed - before.elapsed, cpu_s, result


def _write_tales(folder: Path, size_bytes: float) -> int:
    """Eight files of numbered tales: no two are the same. Gives their number."""
    tales = generate_tales(1, 2900)
    rng = np.random.default_rng(1)
    written_bytes = count = 0
    for number in range(8):
        with (folder / f"{number}.txt").open("w") as file:
            while written_bytes < size_bytes * (number + 1) / 8:
                text = "".join(
                    f"Tale {count + i}. {tales[n]}\n{END_OF_TEXT}\n" for i, n in enumerate(rng.permutation(len(tales)))
                )
                written_bytes += file.write(text)
                count += len(tales)
    return count


def _processes_bytes() -> int:
    """Return the memory of this process and its children, in bytes: all anonymous, and once what they share."""
    me = psutil.Process()
    resident = [machine.resident_bytes(process.pid) for process in (me, *me.children(recursive=True))]
    shared = max(memory.get("RssFile", 0) + memory.get("RssShmem", 0) for memory in resident)
    return shared + sum(memory.get("RssAnon", 0) for memory in resident)


if __name__ == "__main__":
    main()
