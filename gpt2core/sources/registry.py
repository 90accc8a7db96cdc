"""The registry of public inputs: where each comes from, what its bytes hash to, and under which licence.

A file's path in a mirror is `<asset>/<file name>`. Hashes and sizes are those of the file itself, also where the
public source is a zip that holds it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from gpt2core.errors import UserError

Kind = Literal["corpus", "classification", "instructions", "tokenizer", "openai", "scores"]

# The data shard, by far the largest, comes last: when a small file fails, nothing large has to be fetched again.
OPENAI_FILES = (
    "checkpoint", "encoder.json", "hparams.json", "vocab.bpe", "model.ckpt.index", "model.ckpt.meta",
    "model.ckpt.data-00000-of-00001",
)  # fmt: skip
OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2"
# Version 1.0.0, the revision that Git knows by this hash, which covers the files' SHA-256 by their LFS pointers.
FINEWEB_EDU_URL = (
    "https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu/resolve/fc9850dff5e2d0f8f776efe41b24a1c49556cfc5"
)
BOOK_CODE_URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"


@dataclass(frozen=True)
class File:
    """One file of an asset. The URLs are tried in order; where `archive_member` is set, they lead to a zip of it."""

    name: str
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    size_bytes: int | None = None
    archive_member: str | None = None


@dataclass(frozen=True)
class Asset:
    """A named input. `generated` is written by `gpt2core.sources.synthetic`; `packaged` lies in `gpt2core/assets/`."""

    name: str
    kind: Kind
    description: str
    licence: str
    files: tuple[File, ...] = ()
    origin: Literal["public", "generated", "packaged"] = "public"
    cut: Literal["gutenberg"] | None = None  # keep only what stands between Project Gutenberg's START and END lines
    held_out: tuple[str, ...] = ()  # names of the files that are the validation split


def find(kind: Kind, name: str) -> Asset:
    """The asset of that kind and name. Raises UserError that lists what there is."""
    names = [asset.name for asset in registry() if asset.kind == kind]
    for asset in registry():
        if (asset.kind, asset.name) == (kind, name):
            return asset
    own = "" if kind in ("tokenizer", "openai") else "; a file of your own goes to data/own/ and is named own/FILE"
    raise UserError(f"no {kind} source is called {name!r}; there are: {', '.join(names)}{own}")


@cache
def registry() -> tuple[Asset, ...]:
    """All assets."""
    encoder = ("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", 1_042_301)
    vocab = ("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", 456_318)
    return (
        Asset("embedded", "corpus", "short tales from a grammar", "MIT", origin="generated"),
        Asset(
            "the-verdict", "corpus", "Edith Wharton, The Verdict (1908); 5,145 GPT-2 tokens", "public domain",
            (File(
                "the-verdict.txt", (f"{BOOK_CODE_URL}/ch02/01_main-chapter-code/the-verdict.txt",),
                "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f", 20_479,
            ),),
        ),
        Asset(
            "tiny-shakespeare", "corpus", "1.1 MB of Shakespeare's plays", "public domain",
            (File(
                "input.txt",
                ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", 1_115_394,
            ),),
        ),
        _novels(),
        _fineweb_edu(),
        Asset(
            "embedded", "classification", "short messages from two grammars, a third of them spam", "MIT",
            origin="generated",
        ),
        Asset(
            "sms-spam-collection", "classification", "Almeida and Hidalgo (2011): 5,574 messages, 747 of them spam",
            "CC BY 4.0",
            (File(
                "SMSSpamCollection",
                (
                    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
                    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
                ),
                "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d", 477_907, "SMSSpamCollection",
            ),),
        ),
        Asset("embedded", "instructions", "instructions about the tales' world", "MIT", origin="generated"),
        Asset(
            "instruction-data", "instructions", "1,100 instructions in Alpaca's form", "Apache-2.0",
            (File(
                "instruction-data.json", (f"{BOOK_CODE_URL}/ch07/01_main-chapter-code/instruction-data.json",),
                "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944", 203_524,
            ),),
        ),
        Asset(
            "gpt2-bpe", "tokenizer", "GPT-2's byte-level BPE", "modified MIT",
            tuple(
                File(name, (f"{OPENAI_URL}/models/124M/{name}", f"{OPENAI_URL}/encodings/main/{name}"), sha, size)
                for name, sha, size in (encoder, vocab)
            ),
        ),
        Asset(
            "judge-examples", "scores", "two models' responses, with GPT-4's and Llama-3-8B's scores of them",
            "Apache-2.0",
            (
                File(
                    "instruction-data-with-response.json",
                    (f"{BOOK_CODE_URL}/ch07/01_main-chapter-code/instruction-data-with-response.json",),
                    "aced320504c77c98d957316eb9f3460945256226c36b5e9752bf7d49585eb943", 29_279,
                ),
                File(
                    "eval-example-data.json", (f"{BOOK_CODE_URL}/ch07/03_model-evaluation/eval-example-data.json",),
                    "90e9ceb4f1184f6b307fd76d0dd1e8b15bd3da200b1fc69ee897107394a775e0", 36_874,
                ),
                *(
                    File(
                        f"scores-{name}.json", (f"{BOOK_CODE_URL}/ch07/03_model-evaluation/scores/{name}.json",),
                        sha256, size_bytes,
                    )
                    for name, sha256, size_bytes in (
                        ("gpt4-model-1-response",
                         "705f24bf17878d5e29c5cb2daeae00a64a1688756192478f91f41bf1eff85689", 445),
                        ("gpt4-model-2-response",
                         "2b10d2abdf1f71f4f8057c012be2bf6c777823adbadb597f4d1699e06129db5a", 408),
                        ("llama3-8b-model-1-response",
                         "a6005211110bf3d9e30dbdb17638a1918004bc490c85b0b3520798a31d7fa5a4", 402),
                        ("llama3-8b-model-2-response",
                         "18e501530c56085aca3e6c2d7da39edc03fd85fe205f17a65ab1a400c6d61125", 393),
                    )
                ),
            ),
        ),
        # No hashes of the weights were published; `convert` checks the checksum that the checkpoint has of each tensor.
        *(
            Asset(
                f"openai-{size}", "openai", f"GPT-2 {size}, a TensorFlow checkpoint", "modified MIT",
                tuple(_openai_file(size, name, {entry[0]: entry[1:] for entry in (encoder, vocab)})
                      for name in OPENAI_FILES),
            )
            for size in ("124M", "355M", "774M", "1558M")
        ),
        Asset(
            "openai-tiny", "openai", "a GPT-2 of our own in OpenAI's format, for work without a network", "MIT",
            tuple(File(name) for name in OPENAI_FILES), origin="packaged",
        ),
    )  # fmt: skip


def _openai_file(size: str, name: str, pinned: dict[str, tuple[str, int]]) -> File:
    sha256, size_bytes = pinned.get(name, (None, None))
    return File(name, (f"{OPENAI_URL}/models/{size}/{name}",), sha256, size_bytes)


def _novels() -> Asset:
    text = resources.files("gpt2core.sources").joinpath("novels.tsv").read_text(encoding="utf-8")
    rows: Iterable[dict[str, str]] = list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    return Asset(
        "novels",
        "corpus",
        "23 novels, 28.9 MB, about 7 million GPT-2 tokens; two of them held out",
        "public domain in the USA",
        tuple(File(row["file"], (row["url"],), row["sha256"], int(row["bytes"])) for row in rows),
        cut="gutenberg",
        held_out=tuple(row["file"] for row in rows if row["split"] == "val"),
    )


def _fineweb_edu() -> Asset:
    text = resources.files("gpt2core.sources").joinpath("fineweb_edu_10bt.tsv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    return Asset(
        "fineweb-edu-10bt",
        "corpus",
        "FineWeb-Edu's sample of 10 billion tokens: 9,672,101 pages, 28.5 GB of Parquet (Penedo et al. 2024)",
        "ODC-By 1.0",
        tuple(
            File(row["file"], (f"{FINEWEB_EDU_URL}/sample/10BT/{row['file']}",), row["sha256"], int(row["bytes"]))
            for row in rows
        ),
    )


def from_url(url: str) -> Asset:
    """A corpus of one file, by its address; `#sha256=…` behind it pins its bytes, as pip writes it.

    In a mirror it is `<host>/<file name>`. Raises UserError for what is no such address.
    """
    parts = urlsplit(url)
    name = unquote(PurePosixPath(parts.path).name)
    pin = parts.fragment
    if parts.scheme != "https" or not parts.hostname or not name:
        raise UserError(f"{url!r} must be the address of a file, such as https://example.org/shard.jsonl.zst")
    if pin and not re.fullmatch(r"sha256=[0-9a-f]{64}", pin):
        raise UserError(f"{url!r}: behind # only sha256= and 64 hexadecimal digits are allowed")
    file = File(name, (urlunsplit(parts._replace(fragment="")),), pin.removeprefix("sha256=") or None)
    pinned = "pinned by SHA-256" if pin else "no hash is pinned"
    return Asset(parts.hostname, "corpus", f"{name}, by its address; {pinned}", "its own", (file,))
