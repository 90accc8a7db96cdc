"""The corpus of `download-data`: from names in params to files of documents in `train/` and `val/`.

Plain text gets LF line ends and loses its byte order mark; other files are checked and taken unchanged.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gpt2core import files
from gpt2core.corpus import documents, remote
from gpt2core.corpus.remote import RemoteFile
from gpt2core.errors import UserError
from gpt2core.sources import download, registry
from gpt2core.sources.registry import Asset
from gpt2core.sources.synthetic import generate_tales

EMBEDDED_TALES = 2_900  # of about 645 bytes: 1.9 MB
SEPARATOR = f"\n{documents.END_OF_TEXT}\n"

GUTENBERG = re.compile(
    r"^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG EBOOK[^\n]*\n"
    r"(.*?)^\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG EBOOK",
    re.MULTILINE | re.DOTALL,
)


class OwnFiles(NamedTuple):
    """The user's own files, and the folder to which their names are relative."""

    paths: list[Path]
    folder: Path


class RemoteFiles(NamedTuple):
    """Files that `tokenize` reads where they are."""

    files: list[RemoteFile]


Source = Asset | OwnFiles | RemoteFiles


def resolve(name: str, own_dir: Path) -> Source:
    """Find a source by its registry name, its address, or `own/` and a file, folder, or glob. Raises UserError."""
    if remote.is_remote(name):
        found = [file for file in remote.find(name) if documents.format_of(file.url)]
        if not found:
            raise UserError(f"{name}: no file of the kind {documents.ALLOWED} is there; check the address")
        return RemoteFiles(found)
    if "://" in name:
        asset = registry.from_url(name)
        _check_format(PurePosixPath(asset.files[0].name))
        return asset
    return _own(own_dir, name) if name.startswith("own/") else registry.find("corpus", name)


def _own(own_dir: Path, name: str) -> OwnFiles:
    pattern = PurePosixPath(name).parts[1:]
    if not pattern or ".." in pattern:
        raise UserError(f"{name!r} must name a file in {own_dir}, such as own/corpus.txt or own/*.jsonl.zst")
    path = own_dir.joinpath(*pattern)
    if path.is_dir():
        paths = [p for p in sorted(path.iterdir()) if documents.is_documents(p)]
        if not paths:
            raise UserError(f"{path}: no file of documents in this folder ({documents.ALLOWED})")
        return OwnFiles(paths, path)
    if path.is_file():
        if path.name.startswith("._"):
            raise UserError(f"{path}: is the companion that a Mac writes next to a file, no text; name the file itself")
        _check_format(path)
        return OwnFiles([path], path.parent)
    try:
        matches = sorted(own_dir.glob("/".join(pattern)))
    except ValueError as error:
        raise UserError(f"own/{'/'.join(pattern)}: is no pattern of files ({error})") from None
    if paths := [p for p in matches if documents.is_documents(p)]:
        return OwnFiles(paths, own_dir)
    raise UserError(f"{path}: no such file of the kind {documents.ALLOWED}; {own_listing(own_dir)}")


def own_listing(own_dir: Path) -> str:
    """Return the part of a message that lists the user's own files."""
    names = ", ".join(f"own/{path.name}" for path in sorted(own_dir.glob("*")) if path.name != "README.md")
    return f"in {own_dir} there is: {names or 'nothing yet'}"


def _check_format(path: Path | PurePosixPath) -> None:
    if not documents.format_of(Path(path)):
        raise UserError(f"{path}: must be a file of the kind {documents.ALLOWED}, or a folder of such files")


def write_corpus(sources: list[Source], seed: int, folder: Path, downloads: contextlib.ExitStack) -> None:
    """Write all sources into `folder`; if there are several, each into its own folder within `train/` and `val/`.

    The user's own files go first: a mistake in them is found before anything is fetched. Downloads are kept until
    `downloads` is closed.
    """
    own_first = sorted(enumerate(sources), key=lambda item: not isinstance(item[1], OwnFiles))
    for number, source in own_first:
        inner = f"{number:03d}" if len(sources) > 1 else ""
        train, val = folder / "train" / inner, folder / "val" / inner
        if isinstance(source, OwnFiles):
            for path in source.paths:
                _take(path, train / path.relative_to(source.folder))
        elif isinstance(source, RemoteFiles):
            remote.write_listing(source.files, train)
        elif source.origin == "generated":
            files.write_text(train / "tales.txt", SEPARATOR.join(generate_tales(seed, EMBEDDED_TALES)))
        else:
            downloaded = downloads.enter_context(download.downloaded(source))
            for file in source.files:
                out_dir = val if file.name in source.held_out else train
                _take(downloaded / file.name, out_dir / file.name, source.cut, may_link=True)


def _take(path: Path, out_path: Path, cut: str | None = None, may_link: bool = False) -> None:
    """Check a file and copy it to `out_path`; `may_link` if it is never written again, and may be large."""
    plain = documents.format_of(path) in ((".txt", ""), None)
    if plain:
        out_path = out_path.with_suffix(".txt")
    if out_path.exists():
        raise UserError(f"{path}: another file of the corpus has this name; give it another one")
    out_path.parent.mkdir(parents=True, exist_ok=True)
    if cut == "gutenberg":
        files.write_text(out_path, cut_gutenberg(path))
    elif plain:
        _copy_text(path, out_path)
    else:
        if not any(True for part in documents.plan(path) for _ in documents.read(part)):  # the first one is enough
            raise UserError(f"{path}: the file is empty; a corpus needs text")
        files.link_or_copy(path, out_path) if may_link else shutil.copyfile(path, out_path)


def cut_gutenberg(path: Path) -> str:
    """Return the text between the START and END lines of a Project Gutenberg file, with LF line ends.

    Around it is Project Gutenberg's license, the same in each file: a model would learn it by heart.
    """
    text = files.read_document(path)
    if not (match := GUTENBERG.search(text)) or not match[1].strip():
        raise UserError(f"{path}: no text between lines *** START OF and *** END OF of Project Gutenberg")
    return match[1].strip("\n") + "\n"


def _copy_text(source: Path, out_path: Path) -> None:
    """Copy a UTF-8 text of any size with LF line ends and without a byte order mark."""
    is_empty = True
    with source.open("rb") as file, out_path.open("w", encoding="utf-8", newline="") as copy:
        for block in files.decoded(file, source):
            copy.write(block)
            is_empty = is_empty and not block.strip()
    if is_empty:
        raise UserError(f"{source}: the file is empty; a corpus needs text")
