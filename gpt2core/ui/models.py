"""The models of the page: finding them, and keeping the last ones in memory."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gpt2core import files, runtime
from gpt2core.checkpoint.chat_template import instruction_prompt, prompt_of
from gpt2core.checkpoint.model_card import CARD
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
from gpt2core.tokenizer import Tokenizer, has_tokenizer

MAX_LOADED = 3  # models in memory: one for each tab with its own kind of model
MAX_NOTE = 500  # characters
MAX_CARD_BYTES = 1 << 20
EMBEDDED_NOTE = "It has read short tales about a few people, places, and things, and knows nothing else."
KINDS = LANGUAGE_MODEL, INSTRUCT, CLASSIFIER = "language model", "instruct", "classifier"


class ModelInfo(NamedTuple):
    """A model directory: its name on the page, its path, and one of `KINDS`."""

    name: str
    path: Path
    kind: str


def find_models(directories: Iterable[Path]) -> list[ModelInfo]:
    """Return the model directories among `directories` and in them, sorted by kind.

    Raises:
        UserError: a directory does not exist, a named model directory is damaged, or there is no model.
    """
    models: dict[Path, ModelInfo] = {}
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory}: no such directory; `dvc repro` makes models/, or name model directories")
        if (directory / "config.json").exists():
            models[directory] = _describe(directory)
            continue
        paths = [config.parent for config in directory.rglob("config.json")]
        for path in sorted(paths, key=lambda path: (len(path.parts), path)):
            try:
                models[path] = _describe(path)
            except (UserError, OSError) as error:
                logger.warning(f"left out: {path}: {error}" if isinstance(error, OSError) else f"left out: {error}")
    if not models:
        names = ", ".join(map(str, directories))
        raise UserError(f"{names}: no model directory in it; `dvc repro` makes some, `gpt2core convert` others")
    return sorted(models.values(), key=lambda model: KINDS.index(model.kind))


def _describe(path: Path) -> ModelInfo:
    described = read_described(path)
    if not has_tokenizer(path):
        raise UserError(f"{path}: has no vocab.json and merges.txt, so text cannot be read or written")
    language_model = INSTRUCT if prompt_of(path) else LANGUAGE_MODEL
    return ModelInfo(str(path), path, CLASSIFIER if described.is_classifier else language_model)


class Models:
    """Models by name, loaded at their first use, and again after their directory has changed."""

    def __init__(self, models: Iterable[ModelInfo], dtype: str = "float32") -> None:
        self.by_name = {model.name: model for model in models}
        self._load = functools.lru_cache(maxsize=MAX_LOADED)(_load)
        self._packed = functools.lru_cache(maxsize=MAX_LOADED)(functools.partial(pack, dtype=dtype))

    def any(self, name: str) -> tuple[GPT | GPTClassifier, Tokenizer]:
        """Return a model with its tokenizer. Raises UserError if the page has no such model."""
        return self._load(*self._key(name))

    def classifier(self, name: str) -> tuple[GPTClassifier, Tokenizer]:
        """Return a classifier with its tokenizer. Raises UserError if `name` is something else."""
        model, tokenizer = self.any(name)
        return require_classifier(model, name), tokenizer

    def language_model(self, name: str) -> tuple[Packed, Tokenizer]:
        """Return a language model, ready for decoding. Raises UserError if `name` is something else."""
        model, tokenizer = self.any(name)
        return self._packed(require_language_model(model, name)), tokenizer

    def prompt(self, name: str) -> Prompt:
        """Return the prompt that a model was tuned with; Alpaca's if unknown."""
        path, _ = self._key(name)
        return instruction_prompt(path)

    def note(self, name: str) -> str:
        """Return how a model was made, from its model card, and what a model of the embedded data knows."""
        try:
            card = files.read_text(self.by_name[name].path / CARD, MAX_CARD_BYTES)
        except UserError:
            return ""
        match = re.search(r"^# .*\n\n((?:.+\n)+)", card, re.MULTILINE)
        made = match[1].replace("`", "").strip()[:MAX_NOTE] if match else ""
        return f"{made} {EMBEDDED_NOTE}" if "the corpus embedded" in made else made

    def _key(self, name: str) -> tuple[Path, int]:
        """Return a model's directory and its modification time."""
        if name not in self.by_name:
            raise UserError(f"{name}: is not one of the models of this page: {', '.join(self.by_name)}")
        path = self.by_name[name].path
        try:
            return path, (path / "config.json").stat().st_mtime_ns
        except OSError:
            raise UserError(f"{path}: is not there any more; `dvc repro` makes the pipeline's models again") from None


def _load(path: Path, modified_ns: int) -> tuple[GPT | GPTClassifier, Tokenizer]:
    """Load a model; `modified_ns` is part of the cache's key only."""
    return load_with_tokenizer(path, device=runtime.device())
