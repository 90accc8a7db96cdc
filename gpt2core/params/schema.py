"""All sections of `params.yaml` as one schema, with the default and the description of each key."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from gpt2core.config.data import Data
from gpt2core.config.evaluate import Evaluate
from gpt2core.config.fields import Section
from gpt2core.config.finetune_classify import FinetuneClassify
from gpt2core.config.finetune_instruct import FinetuneInstruct
from gpt2core.config.judge import Judge
from gpt2core.config.mlflow import Mlflow
from gpt2core.config.openai import OpenAI
from gpt2core.config.pretrain import Pretrain
from gpt2core.config.tokenizer import Tokenizer
from gpt2core.config.top_level import TopLevel


class Params(TopLevel):
    """All parameters."""

    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    pretrain: Pretrain = Pretrain()
    openai: OpenAI = OpenAI()
    finetune_classify: FinetuneClassify = FinetuneClassify()
    finetune_instruct: FinetuneInstruct = FinetuneInstruct()
    judge: Judge = Judge()
    evaluate: Evaluate = Evaluate()
    mlflow: Mlflow = Mlflow()


# The sections by name. TopLevel's fields are in no section.
SECTIONS: dict[str, type[Section]] = {
    name: type(field.default) for name, field in Params.model_fields.items() if isinstance(field.default, Section)
}


def keys_of(section: type[Section]) -> list[str]:
    """Return the keys of a section in the order of `params.yaml`: the section's own, then those that it shares."""
    declared = {name: cls for cls in section.__mro__ for name in inspect.get_annotations(cls)}  # the last one wins
    order = [name for cls in section.__mro__ for name in inspect.get_annotations(cls) if declared[name] is cls]
    return [name for name in order if name in section.model_fields]


def all_keys() -> Iterator[tuple[str, str]]:
    """Yield section ("" for none) and name of each key in the order of `params.yaml`."""
    yield from (("", name) for name in TopLevel.model_fields)
    yield from ((name, key) for name, section in SECTIONS.items() for key in keys_of(section))


def description(section: str, key: str) -> str:
    """Return the description of a key. A section may replace a default and keep the description."""
    schema = SECTIONS.get(section, TopLevel)
    fields = (cls.model_fields.get(key) for cls in schema.__mro__ if issubclass(cls, Section))
    return next((field.description for field in fields if field and field.description), "")


def defaults() -> dict[str, Any]:
    """Return the default of each key, as the content of `params.yaml`."""
    return Params().model_dump()
