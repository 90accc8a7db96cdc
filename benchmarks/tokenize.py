"""Tokenising: its speed beside tiktoken's in one process, and the memory that it takes of a large corpus.

python -m benchmarks.tokenize speed MIRROR     the novels of a mirror, repeated to 200 MB
python -m benchmarks.tokenize memory           a generated corpus of 2 GB

Speed counts all that the stage does: starting processes, counting documents, encoding, joining. tiktoken's is its
`encode_ordinary` alone, with its own pattern for GPT-2, on texts that are in memory. Memory is the sum of RssAnon over
all processes, plus once what they share (the largest RssFile + RssShmem of one of them), sampled every 50 ms.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import psutil
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from gpt2core.config.tokenizer import Tokenizer as TokenizerParams
from gpt2core.corpus.shards import open_shard
from gpt2core.corpus.tokenize import tokenize
from gpt2core.runtime import available_processes
from gpt2core.sources.synthetic import generate_tales
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer

MB = 1e6


@click.group()
def main() -> None:
    """Speed and memory of the stage tokenize."""


@main.command()
@click.argument("mirror", type=click.Path(exists=True, path_type=Path))
@click.option("--megabytes", default=200, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def speed(mirror: Path, megabytes: int, rounds: int) -> None:
    """MB/s of text, both sides in turn, median and range; and by processor time, which neighbours change less."""
    with tempfile.TemporaryDirectory() as name:
        root = _project(Path(name))
        corpus = root / "raw" / "corpus"
        (corpus / "train").mkdir(parents=True)
        (corpus / "gpt2-bpe").symlink_to((mirror / "gpt2-bpe").resolve())
        texts = _repeated(
            [path.read_text("utf-8-sig") for path in sorted((mirror / "novels").glob("*.txt"))], megabytes * MB
        )
        for number, text in enumerate(texts):
            (corpus / "train" / f"{number:03d}.txt").write_text(text, "utf-8")
        size_mb = sum(path.stat().st_size for path in (corpus / "train").iterdir()) / MB

        plain = Tokenizer.from_files(mirror / "gpt2-bpe" / "encoder.json", mirror / "gpt2-bpe" / "vocab.bpe")
        encoding = tiktoken.Encoding(
            "gpt2", pat_str=r50k_pat_str, mergeable_ranks=plain.ranks, special_tokens={END_OF_TEXT: plain.eot_id}
        )
        n_tokens: list[int] = []

        def theirs() -> None:
            n_tokens.append(sum(len(encoding.encode_ordinary(text)) + 1 for text in texts))

        def ours() -> None:
            figures = tokenize(_params("gpt2"), 1, root / "raw", root / "tokens")
            n_tokens.append(figures["train_tokens"] + figures["val_tokens"])

        print(f"{len(texts)} novels, {size_mb:.0f} MB, {available_processes()} processes")
        rates: dict[str, list[tuple[float, float]]] = {"tiktoken, one process": [], "the stage": []}
        for _ in range(rounds):
            for found, work in zip(rates.values(), (theirs, ours), strict=True):
                cpu_s, wall_s = _cpu_seconds(), _seconds(work)
                found.append((size_mb / wall_s, size_mb / (_cpu_seconds() - cpu_s)))
        assert len(set(n_tokens)) == 1, f"different numbers of tokens: {n_tokens}"
        for title, found in rates.items():
            wall, cpu = zip(*found, strict=True)
            spread = f"({min(wall):.1f} to {max(wall):.1f}), {statistics.median(cpu):.1f} MB a core-second"
            print(f"{title:>22}: {statistics.median(wall):5.1f} MB/s {spread}")
        first, second = (statistics.median(wall for wall, _ in found) for found in rates.values())
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
        with PeakMemory() as peak:
            seconds = _seconds(
                lambda: tokenize(_params("bpe", shuffle, drop_duplicates), 1, root / "raw", root / "tokens")
            )
        tokens = open_shard(root / "tokens" / "train.bin").n_tokens
        print(f"{megabytes} MB, {n_documents:,} documents, {tokens:,} tokens of training, {seconds:.0f} s")
        print(f"peak of {available_processes()} processes and the one that started them: {peak.mb:.0f} MB")


def _project(root: Path) -> Path:
    os.environ["DVC_ROOT"] = str(root)  # where unfinished work lies
    return root


def _params(kind: str, shuffle: bool = False, drop_duplicates: bool = False) -> TokenizerParams:
    return TokenizerParams(
        kind=kind, vocab_size=8192 if kind == "gpt2" else 960, val_fraction=0.01, shuffle=shuffle,
        drop_duplicates=drop_duplicates,
    )  # fmt: skip


def _seconds(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def _cpu_seconds() -> float:
    """Processor time of this process and of those under it that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _repeated(texts: list[str], size_bytes: float) -> list[str]:
    once_bytes = sum(len(text.encode()) for text in texts)
    return texts * max(1, round(size_bytes / once_bytes))


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


class PeakMemory:
    """`with PeakMemory() as peak: …`, then `peak.mb`: the most that this process and those under it had at one time."""

    def __init__(self) -> None:
        self.mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.05):
            found = [_status_kb(process.pid) for process in (me, *me.children(recursive=True))]
            own_kb = sum(status.get("RssAnon", 0) for status in found)
            shared_kb = max(status.get("RssFile", 0) + status.get("RssShmem", 0) for status in found)
            self.mb = max(self.mb, (own_kb + shared_kb) * 1024 / MB)


def _status_kb(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}


if __name__ == "__main__":
    main()
