"""The stage `download-data`: three sources in the form that all later stages read.

corpus/train/           files of documents (see documents.py); in a text, `<|endoftext|>` separates documents
                        and remote.json, the list of those that are on S3 or the Hugging Face Hub (see remote.py)
corpus/val/             only if the source has held-out texts
corpus/continued/       `train/` and `val/` of a second corpus, only with `data.continued_corpus`
classification.jsonl    {"label": …, "text": …} per line
instructions.json       [{"instruction": …, "input": …, "output": …}, …]
corpus/gpt2-bpe/        encoder.json and vocab.bpe, only for `tokenizer.kind: gpt2`
"""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from gpt2core import files
from gpt2core.config.data import Data
from gpt2core.corpus import remote
from gpt2core.corpus.documents import find_documents
from gpt2core.errors import UserError
from gpt2core.sources import download, raw_corpus, registry
from gpt2core.sources.registry import Asset
from gpt2core.sources.synthetic import generate_instructions, generate_messages
from gpt2core.tasks import instructions, labeled_texts

CORPORA = {"corpus": "corpus", "continued_corpus": "corpus/continued"}  # key in params.data, and folder
OWN_SUFFIXES = {  # of files in data/own/ for these keys of params.data
    "classification": labeled_texts.SUFFIXES,
    "instructions": (".json", ".jsonl"),
}


def prepare_raw(data: Data, tokenizer_kind: str, seed: int, out_dir: Path, own_dir: Path) -> dict[str, Any]:
    """Write corpus, messages, and instructions into `out_dir`, checked; all or nothing.

    Args:
        data: names of the registry, `own/FILE`, or for the corpus also a URL, or a list.
        tokenizer_kind: `gpt2` adds GPT-2's two tokenizer files.
        seed: decides what the embedded generators write.
        out_dir: replaced by the new directory when it is complete.
        own_dir: the folder of the user's own files (`data/own`).

    Returns:
        Counts, and size and SHA-256 of each file, for the log.

    Raises:
        UserError: an unknown name, a download that failed, or content that is not what its key needs.
    """
    problems: list[str] = []
    corpora = {
        folder: [_resolved(problems, key, raw_corpus.resolve, name, own_dir) for name in _names(getattr(data, key))]
        for key, folder in CORPORA.items()
    }
    labeled = _resolved(problems, "classification", _table, "classification", data.classification, own_dir)
    entries = _resolved(problems, "instructions", _table, "instructions", data.instructions, own_dir)
    if problems:
        raise UserError("\n".join(problems))
    alone = files.lock(download.downloads_dir() / "data.lock")
    # The downloads are removed when `out_dir` is in its place, and not before: a kill until then loses nothing.
    with alone, contextlib.ExitStack() as downloads, files.atomic_dir(out_dir) as folder:
        labeled_texts.write_jsonl(folder / "classification.jsonl", _messages(labeled, data, seed, downloads))
        files.write_json(folder / "instructions.json", _entries(entries, seed, downloads))
        if tokenizer_kind == "gpt2":
            bpe = registry.find("tokenizer", "gpt2-bpe")
            download.link_all(bpe, downloads.enter_context(download.downloaded(bpe)), folder / "corpus" / "gpt2-bpe")
        for name, sources in corpora.items():
            raw_corpus.write_corpus(sources, seed, folder / name, downloads)
        return _figures(folder)


def _names(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def _resolved(problems: list[str], key: str, resolve: Any, *args: Any) -> Any:
    """Resolve a name; an error is collected, so that all wrong names are reported together."""
    try:
        return resolve(*args)
    except UserError as error:
        problems.append(f"params.yaml: data.{key}: {error}")


def _table(kind: Literal["classification", "instructions"], name: str, own_dir: Path) -> Asset | Path:
    """Return a source of messages or instructions: an asset, or a file in data/own/."""
    if not name.startswith("own/"):
        return registry.find(kind, name)
    parts = PurePosixPath(name).parts[1:]
    if not parts or ".." in parts:
        raise UserError(f"{name!r} must name a file in {own_dir}, such as own/{kind}{OWN_SUFFIXES[kind][0]}")
    path = own_dir.joinpath(*parts)
    if not path.exists():
        raise UserError(f"{path}: no such file; {raw_corpus.own_listing(own_dir)}")
    if not path.is_file() or path.suffix.lower() not in OWN_SUFFIXES[kind]:
        allowed = ", ".join(suffix or "no suffix" for suffix in OWN_SUFFIXES[kind])
        raise UserError(f"{path}: must be a file of the kind {allowed}")
    return path


def _messages(
    source: Asset | Path, data: Data, seed: int, downloads: contextlib.ExitStack
) -> list[labeled_texts.Message]:
    if isinstance(source, Path):
        return labeled_texts.read_table(source, data.classification_label_column, data.classification_text_column)
    if source.origin == "generated":
        return [labeled_texts.Message(label, text) for label, text in generate_messages(seed)]
    return labeled_texts.read_table(downloads.enter_context(download.downloaded(source)) / source.files[0].name)


def _entries(source: Asset | Path, seed: int, downloads: contextlib.ExitStack) -> list[Any]:
    if isinstance(source, Path):
        return instructions.read(source)
    if source.origin == "generated":
        return generate_instructions(seed)
    return instructions.read(downloads.enter_context(download.downloaded(source)) / source.files[0].name)


def _figures(folder: Path) -> dict[str, Any]:
    messages = labeled_texts.read_table(folder / "classification.jsonl")
    sizes_bytes = [path.stat().st_size for path in find_documents(folder / "corpus")]
    sizes_bytes += [file.size_bytes for file in remote.listed(folder / "corpus")]
    return {
        "corpus_files": len(sizes_bytes),
        "corpus_bytes": sum(sizes_bytes),
        "messages": len(messages),
        "message_classes": len(labeled_texts.classes(messages)),
        "instructions": len(files.read_json(folder / "instructions.json")),
        "sha256": {p.relative_to(folder).as_posix(): files.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()},
    }
