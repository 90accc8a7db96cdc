"""The stage `download-data`: three sources, wherever they come from, in one form that all later stages read.

corpus/train/*.txt      UTF-8; documents within a file are separated by `<|endoftext|>`
corpus/val/*.txt        only where the source holds texts out itself
sms.jsonl               {"label": …, "text": …} a line
instructions.json       [{"instruction": …, "input": …, "output": …}, …]
corpus/gpt2-bpe/        encoder.json and vocab.bpe, only for `tokenizer.kind: gpt2`
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from gpt2core import config, files
from gpt2core.data import download, instructions, sms_spam, sources
from gpt2core.data.sources import Asset
from gpt2core.data.synthetic import generate_instructions, generate_messages, generate_tales
from gpt2core.errors import UserError

EMBEDDED_TALES = 2_900  # of about 645 bytes: 1.9 MB
SEPARATOR = "\n<|endoftext|>\n"
BLOCK_CHARS = 1 << 20

GUTENBERG = re.compile(
    r"^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG EBOOK[^\n]*\n"
    r"(.*?)^\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG EBOOK",
    re.MULTILINE | re.DOTALL,
)

OWN_SUFFIXES = {  # what data/own/ may hold for each key of params.data
    "corpus": (".txt",),
    "sms": (".tsv", ".csv", ".txt", ""),
    "instructions": (".json",),
}


def prepare_raw(data: config.Data, tokenizer_kind: str, seed: int, out_dir: Path, own_dir: Path) -> dict[str, Any]:
    """Bring corpus, messages and instructions into `out_dir`, checked; whole or not at all.

    Args:
        data: a name of the registry or `own/FILE` for each of the three.
        tokenizer_kind: with `gpt2`, GPT-2's two tokenizer files come too.
        seed: decides what the embedded generators write.
        out_dir: replaced by the new directory when everything in it is there.
        own_dir: the folder of the person's own files (`data/own`).

    Returns:
        Counts, and size and SHA-256 of each file, for the log.

    Raises:
        UserError: an unknown name, a download that failed, or content that is not what its key needs.
    """
    corpus, sms, entries = _resolve(data, own_dir)
    alone = files.lock(download.downloads_dir() / "data.lock")
    with alone, download.disk_errors(out_dir), files.atomic_dir(out_dir) as folder:
        sms_spam.write_jsonl(folder / "sms.jsonl", _messages(sms, seed))
        files.write_json(folder / "instructions.json", _entries(entries, seed))
        _write_corpus(corpus, seed, folder / "corpus")
        if tokenizer_kind == "gpt2":
            download.fetch_all(sources.find("tokenizer", "gpt2-bpe"), folder / "corpus" / "gpt2-bpe")
        return _figures(folder)


def _resolve(data: config.Data, own_dir: Path) -> list[Asset | Path]:
    """Each of the three as an asset or a path in data/own/; everything wrong with the names in one UserError."""
    found: list[Asset | Path] = []
    problems = []
    for kind, name in data.model_dump().items():
        try:
            found.append(_own(own_dir, kind, name) if name.startswith("own/") else sources.find(kind, name))
        except UserError as error:
            problems.append(f"params.yaml: data.{kind}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return found


def _own(own_dir: Path, kind: str, name: str) -> Path:
    parts = PurePosixPath(name).parts[1:]
    if not parts or ".." in parts:
        raise UserError(f"{name!r} must name a file in {own_dir}, such as own/{kind}{OWN_SUFFIXES[kind][0]}")
    path = own_dir.joinpath(*parts)
    if not path.exists():
        there = ", ".join(f"own/{p.name}" for p in sorted(own_dir.glob("*")) if p.name != "README.md")
        raise UserError(f"{path}: no such file; in {own_dir} there is: {there or 'nothing yet'}")
    if path.is_dir() and kind == "corpus":
        return path
    if not path.is_file() or path.suffix.lower() not in OWN_SUFFIXES[kind]:
        allowed = ", ".join(suffix or "no suffix" for suffix in OWN_SUFFIXES[kind])
        folder = " or a folder of such files" if kind == "corpus" else ""
        raise UserError(f"{path}: must be a file of the kind {allowed}{folder}")
    return path


def _bring(asset: Asset, use: Callable[[Path], Any]) -> Any:
    """Give `use` a folder of all the asset's files. It outlives a failed run, so that nothing is fetched twice."""
    folder = download.downloads_dir() / asset.name
    for file in asset.files:
        download.fetch(asset, file, folder / file.name)
    result = use(folder)
    shutil.rmtree(folder)
    return result


def _messages(source: Asset | Path, seed: int) -> list[sms_spam.Message]:
    if isinstance(source, Path):
        return sms_spam.read_table(source)
    if source.origin == "generated":
        return [sms_spam.Message(label, text) for label, text in generate_messages(seed)]
    return _bring(source, lambda folder: sms_spam.read_table(folder / source.files[0].name))


def _entries(source: Asset | Path, seed: int) -> list[Any]:
    if isinstance(source, Path):
        return instructions.read(source)
    if source.origin == "generated":
        return generate_instructions(seed)
    return _bring(source, lambda folder: instructions.read(folder / source.files[0].name))


def _write_corpus(source: Asset | Path, seed: int, folder: Path) -> None:
    if isinstance(source, Path):
        paths = sorted(source.glob("*.txt")) if source.is_dir() else [source]
        if not paths:
            raise UserError(f"{source}: no .txt file in this folder")
        for path in paths:
            _copy_text(path, folder / "train" / f"{path.stem}.txt")
    elif source.origin == "generated":
        files.write_text(folder / "train" / "tales.txt", SEPARATOR.join(generate_tales(seed, EMBEDDED_TALES)))
    else:
        _bring(source, lambda downloaded: _copy_asset(source, downloaded, folder))


def _copy_asset(asset: Asset, downloaded: Path, folder: Path) -> None:
    for file in asset.files:
        out_path = folder / ("val" if file.name in asset.held_out else "train") / file.name
        out_path = out_path.with_suffix(".txt")
        if asset.cut == "gutenberg":
            files.write_text(out_path, cut_gutenberg(downloaded / file.name))
        else:
            _copy_text(downloaded / file.name, out_path)


def cut_gutenberg(path: Path) -> str:
    """What stands between the START and END lines of a Project Gutenberg file, with `\\n` as line end.

    What is around them is Project Gutenberg's licence, the same in each file: a model would learn it by heart.
    """
    text = re.sub(r"\r\n?", "\n", files.read_text(path))
    if not (match := GUTENBERG.search(text)) or not match[1].strip():
        raise UserError(f"{path}: no text between lines *** START OF and *** END OF of Project Gutenberg")
    return match[1].strip("\n") + "\n"


def _copy_text(source: Path, out_path: Path) -> None:
    """Copy a UTF-8 text of any size with `\\n` as line end and without a byte order mark."""
    is_empty = True
    out_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open(encoding="utf-8-sig") as text, out_path.open("w", encoding="utf-8", newline="\n") as copy:
            while block := text.read(BLOCK_CHARS):
                copy.write(block)
                is_empty = is_empty and not block.strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source}: not UTF-8 ({error.reason}); save the file as UTF-8 (for example: iconv -f latin1 -t utf-8)"
        ) from None
    if is_empty:
        raise UserError(f"{source}: the file is empty; a corpus needs text")


def _figures(folder: Path) -> dict[str, Any]:
    messages = sms_spam.read_jsonl(folder / "sms.jsonl")
    corpus = sorted((folder / "corpus").rglob("*.txt"))
    return {
        "corpus_files": len(corpus),
        "corpus_bytes": sum(path.stat().st_size for path in corpus),
        "messages": len(messages),
        "spam_messages": sum(message.label == "spam" for message in messages),
        "instructions": len(files.read_json(folder / "instructions.json")),
        "sha256": {p.relative_to(folder).as_posix(): files.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()},
    }
