"""Section `evaluate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gpt2core.config.fields import Count, PositiveInt, Section


class Evaluate(Section):
    """Benchmarks of lm-eval with models/instruct, in the last stage; they need gpt2core[evaluate]."""

    tasks: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="such as [hellaswag, lambada_openai, data/own/my_task.yaml]; see docs/benchmarks.md"
    )
    num_fewshot: Count | None = Field(
        default=None, description="solved examples before each question; null: as the task says, otherwise none"
    )
    limit: PositiveInt | None = Field(default=None, description="only this number of items per task; null: all")
