"""Which models there are to try, and those that were used last, kept in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpt2core import prompts, runtime
from gpt2core.checkpoint.chat_template import prompt_of
from gpt2core.checkpoint.model_dir import (
    load_with_tokenizer,
    read_described,
    require_classifier,
    require_language_model,
)
from gpt2core.errors import UserError
from gpt2core.log import logger
from gpt2core.model import GPT, GPTClassifier
from gpt2core.model.inference import Packed, pack
from gpt2core.prompts import Prompt
from gpt2core.tokenizer import Tokenizer

KEPT = 3  # models in memory: one for each tab that has its own kind
KINDS = LANGUAGE_MODEL, INSTRUCT, CLASSIFIER = "language model", "instruct", "classifier"


@dataclass(frozen=True)
class Found:
    """A model directory: what it is called on the page, and its kind, one of the three above."""

    name: str
    path: Path
    kind: str


def find(directories: Iterable[Path]) -> list[Found]:
    """The models among `directories` and, where one is no model directory itself, all that lie in it; by kind.

    Raises:
        UserError: a directory does not exist, or there is no model; of those that are named, that one is damaged.
    """
    found: dict[Path, Found] = {}
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory}: no such directory; `dvc repro` makes models/, or name model directories")
        if (directory / "config.json").exists():
            found[directory] = _describe(directory)
            continue
        for path in sorted((config.parent for config in directory.rglob("config.json")), key=_near_first):
            try:
                found[path] = _describe(path)
            except UserError as error:
                logger.warning(f"left out: {error}")
    if not found:
        named = ", ".join(map(str, directories))
        raise UserError(f"{named}: no model directory in it; `dvc repro` makes some, `gpt2core convert` others")
    return sorted(found.values(), key=lambda each: KINDS.index(each.kind))


def _near_first(path: Path) -> tuple[int, Path]:
    return len(path.parts), path


def _describe(path: Path) -> Found:
    described = read_described(path)
    if not Tokenizer.is_in(path):
        raise UserError(f"{path}: has no vocab.json and merges.txt, so text cannot be read or written")
    if described.is_classifier:
        return Found(str(path), path, CLASSIFIER)
    return Found(str(path), path, INSTRUCT if prompt_of(path) else LANGUAGE_MODEL)


class Models:
    """The found models by name, each read when it is first used, and again when its directory was made anew."""

    def __init__(self, found: Iterable[Found], dtype: str = "float32") -> None:
        self.found = {each.name: each for each in found}
        self._load = functools.lru_cache(maxsize=KEPT)(_load)
        self._packed = functools.lru_cache(maxsize=KEPT)(functools.partial(pack, dtype=dtype))

    def any(self, name: str) -> tuple[GPT | GPTClassifier, Tokenizer]:
        """The model as it was trained. Raises UserError if there is none of this name."""
        return self._load(*self._key(name))

    def classifier(self, name: str) -> tuple[GPTClassifier, Tokenizer]:
        """Raises UserError if `name` is something else."""
        model, tokenizer = self.any(name)
        return require_classifier(model, name), tokenizer

    def language_model(self, name: str) -> tuple[Packed, Tokenizer]:
        """Ready for decoding. Raises UserError if `name` is something else."""
        model, tokenizer = self.any(name)
        return self._packed(require_language_model(model, name)), tokenizer

    def prompt(self, name: str) -> Prompt:
        """The form in which this model was taught instructions; Alpaca's, where it does not say."""
        path, _ = self._key(name)
        return prompt_of(path) or prompts.alpaca

    def _key(self, name: str) -> tuple[Path, int]:
        if name not in self.found:
            raise UserError(f"{name}: is not one of the models of this page: {', '.join(self.found)}")
        path = self.found[name].path
        try:
            return path, (path / "config.json").stat().st_mtime_ns
        except OSError:
            raise UserError(f"{path}: is not there any more; `dvc repro` makes the pipeline's models again") from None


def _load(path: Path, stamp: int) -> tuple[GPT | GPTClassifier, Tokenizer]:
    """`stamp` is the time of the directory's files: other files, another model."""
    return load_with_tokenizer(path, device=runtime.device())
