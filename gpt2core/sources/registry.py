"""The registry of public inputs: URLs, SHA-256, sizes, and licenses.

A file's path in a mirror is `<asset>/<file name>`. Hashes and sizes are those of the file itself, even if the public
source is a zip.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Literal, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from gpt2core.errors import UserError
from gpt2core.redact import redacted, secret_in_url

Kind = Literal["corpus", "classification", "instructions", "tokenizer", "openai", "scores"]
Origin = Literal["public", "generated", "packaged"]

MAX_NAME_BYTES = 200  # file systems allow 255; temporary names and locks add to it
UNSAFE_IN_NAME = re.compile(r"[/\\:\x00-\x1f\x7f-\x9f\ud800-\udfff]")

# The data shard, by far the largest, is last: after a small file failed, nothing large is fetched again.
OPENAI_FILES = (
    "checkpoint", "encoder.json", "hparams.json", "vocab.bpe", "model.ckpt.index", "model.ckpt.meta",
    "model.ckpt.data-00000-of-00001",
)  # fmt: skip
OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2"
# Version 1.0.0, by the Git revision, which covers the files' SHA-256 by their LFS pointers.
FINEWEB_EDU_URL = (
    "https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu/resolve/fc9850dff5e2d0f8f776efe41b24a1c49556cfc5"
)


def _check_component(name: str) -> None:
    """Raise UserError unless a name is one plain component of a path, whatever address or table it comes from."""
    if name in ("", ".", "..") or len(os.fsencode(name)) > MAX_NAME_BYTES or UNSAFE_IN_NAME.search(name):
        raise UserError(
            f"{name!r} cannot be the name of a file: allowed are up to {MAX_NAME_BYTES} bytes without "
            "slashes, backslashes, colons, and control characters"
        )


@dataclass(frozen=True)
class File:
    """One file of an asset. The URLs are tried in order; with `archive_member`, they are of a zip that has it.

    Raises:
        UserError: the name is not one plain component of a path.
    """

    name: str
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    size_bytes: int | None = None
    archive_member: str | None = None

    def __post_init__(self) -> None:
        _check_component(self.name)


@dataclass(frozen=True)
class Asset:
    """A named input. `generated` is written by `gpt2core.sources.synthetic`; `packaged` is in `gpt2core/assets/`.

    Raises:
        UserError: the name, which is a folder in mirrors, is not one plain component of a path.
    """

    name: str
    kind: Kind
    description: str
    license: str
    files: tuple[File, ...] = ()
    origin: Origin = "public"
    cut: Literal["gutenberg"] | None = None  # keep only the text between Project Gutenberg's START and END lines
    held_out: tuple[str, ...] = ()  # names of the files that are the validation split

    def __post_init__(self) -> None:
        _check_component(self.name)


def find(kind: Kind, name: str) -> Asset:
    """Return the asset of that kind and name. Raises UserError that lists the existing ones."""
    names = [asset.name for asset in registry() if asset.kind == kind]
    for asset in registry():
        if (asset.kind, asset.name) == (kind, name):
            return asset
    own = "" if kind in ("tokenizer", "openai") else "; a file of your own goes to data/own/ and is named own/FILE"
    raise UserError(f"no {kind} source is called {name!r}; there are: {', '.join(names)}{own}")


@cache
def registry() -> tuple[Asset, ...]:
    """Return all assets."""
    assets = _assets()
    corpora = [asset for asset in assets if asset.kind == "corpus"]
    others = [asset for asset in assets if asset.kind != "corpus"]
    bpe = {file.name: file for asset in others if asset.name == "gpt2-bpe" for file in asset.files}
    return (
        *corpora,
        _novels(),
        _fineweb_edu(),
        *others,
        *(_openai(size, bpe) for size in ("124M", "355M", "774M", "1558M")),
        Asset(
            "openai-tiny", "openai", "a GPT-2 of our own in OpenAI's format, for work without a network", "MIT",
            tuple(File(name) for name in OPENAI_FILES), origin="packaged",
        ),
    )  # fmt: skip


def _rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a packaged table."""
    text = resources.files("gpt2core.sources").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def _assets() -> list[Asset]:
    """Return the assets in assets.tsv, which has one line per file; the first line of an asset describes it."""
    assets: dict[tuple[str, str], Asset] = {}
    for row in _rows("assets.tsv"):
        key = row["kind"], row["name"]
        if key not in assets:
            kind, origin = cast(Kind, row["kind"]), cast(Origin, row["origin"])
            assets[key] = Asset(row["name"], kind, row["description"], row["license"], origin=origin)
        if row["file"]:
            urls, size_bytes = tuple(row["urls"].split()), int(row["bytes"])
            file = File(row["file"], urls, row["sha256"], size_bytes, row["archive_member"] or None)
            assets[key] = replace(assets[key], files=(*assets[key].files, file))
    return list(assets.values())


def _openai(size: str, bpe: dict[str, File]) -> Asset:
    """Return OpenAI's checkpoint of a size.

    No hashes of the weights were published; `convert` checks the checksum that the checkpoint has of each tensor.
    """
    files = (replace(bpe.get(name, File(name)), urls=(f"{OPENAI_URL}/models/{size}/{name}",)) for name in OPENAI_FILES)
    description = f"GPT-2 {size}, a TensorFlow checkpoint"
    return Asset(f"openai-{size}", "openai", description, "modified MIT", tuple(files))


def _novels() -> Asset:
    rows = _rows("novels.tsv")
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
    return Asset(
        "fineweb-edu-10bt",
        "corpus",
        "FineWeb-Edu's sample of 10 billion tokens: 9,672,101 pages, 28.5 GB of Parquet (Penedo et al. 2024)",
        "ODC-By 1.0",
        tuple(
            File(row["file"], (f"{FINEWEB_EDU_URL}/sample/10BT/{row['file']}",), row["sha256"], int(row["bytes"]))
            for row in _rows("fineweb_edu_10bt.tsv")
        ),
    )


def from_url(url: str) -> Asset:
    """Return a corpus of one file by its URL; `#sha256=…` after it pins its bytes, as in pip.

    In a mirror it is `<host>/<file name>`. Raises UserError for what is no such address.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{url!r} is not an address ({error})") from None
    name = unquote(PurePosixPath(parts.path).name)
    pin = parts.fragment
    if secret := secret_in_url(url):
        raise UserError(
            f"{redacted(url)!r} has {secret}, which would be in params.yaml, Git, and MLflow; "
            "download the file into data/own/ and name it own/FILE, or set GPT2CORE_MIRROR, which may hold a password"
        )
    if parts.scheme != "https" or not parts.hostname or not name:
        raise UserError(
            f"{url!r} must be the address of a file, such as https://example.org/shard.jsonl.zst, "
            "s3://BUCKET/texts/*.jsonl, or hf://datasets/OWNER/NAME/data/*.parquet"
        )
    if pin and not re.fullmatch(r"sha256=[0-9a-f]{64}", pin):
        raise UserError(f"{url!r}: after #, only sha256= and 64 hexadecimal digits are allowed")
    file = File(name, (urlunsplit(parts._replace(fragment="")),), pin.removeprefix("sha256=") or None)
    pinned = "pinned by SHA-256" if pin else "no hash is pinned"
    return Asset(parts.hostname, "corpus", f"{name}, by its address; {pinned}", "its own", (file,))
