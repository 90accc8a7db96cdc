"""Section `judge`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from gpt2core.config.fields import Names, PositiveInt, Ratio, Samples, Section

TimeoutSeconds = Annotated[float, Field(gt=0, le=86_400)]
Retries = Annotated[int, Field(ge=0, le=100)]
Threads = Annotated[int, Field(gt=0, le=1000)]
Rate = Annotated[float, Field(ge=0.001)]
JUDGES = ("chrf", "openai", "transformers")


def _judges(value: Any) -> str | list[str]:
    kinds = value if isinstance(value, list) else [value]
    if kinds and all(kind in JUDGES for kind in kinds) and len(set(kinds)) == len(kinds):
        return value
    raise PydanticCustomError("judges", f"Input should be {', '.join(JUDGES)}, or a list of different ones")


Judges = Annotated[Any, PlainValidator(_judges)]


class Judge(Section):
    """Scores of the responses. The key of an OpenAI-compatible server is the environment variable OPENAI_API_KEY."""

    kind: Judges = Field(
        default="chrf",
        description="chrf: sacrebleu's chrF++ against the reference, offline | openai: any OpenAI-compatible server | "
        "transformers: a model directory; or a list of these, the first of which gives the headline",
    )
    base_url: str | None = Field(default=None, description="openai: such as http://127.0.0.1:11434/v1 (Ollama)")
    model: Names | None = Field(
        default=None, description="openai: the server's name of the model, such as llama3, or a list, each a judge"
    )
    model_dir: str | None = Field(
        default=None,
        description="transformers: such as models/instruct, or any directory with safetensors and a chat template",
    )
    num_ctx: PositiveInt | None = Field(
        default=None, description="openai: Ollama's context in tokens, set through Ollama's own API"
    )
    max_tokens: PositiveInt = Field(
        default=256,
        description="openai: highest number of tokens of a reply; a score has one to three, but a model that reasons "
        "before it answers needs thousands",
    )
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(default=60.0, description="openai: seconds per request")
    max_retries: Annotated[int, Field(ge=0, le=100)] = Field(
        default=3, description="openai: per request, with back-off"
    )
    concurrency: Annotated[int, Field(gt=0, le=1000)] = Field(default=4, description="openai: concurrent requests")
    requests_per_minute: Rate | None = Field(
        default=None, description="openai: highest rate, retries included; null: no limit"
    )
    pairwise: bool = Field(
        default=False, description="also compare each response with the base model's, in both orders: a win rate"
    )
    min_coverage: Ratio = Field(default=0.95, description="fail if a smaller fraction of the responses was scored")
    bootstrap_samples: Samples = Field(default=1000, description="for the 95% interval of the mean score")
    max_items: PositiveInt | None = Field(default=None, description="score only this number of test entries; null: all")

    def kinds(self) -> list[str]:
        """Return the kinds of judges as a list."""
        return self.kind if isinstance(self.kind, list) else [self.kind]

    def models(self) -> list[str]:
        """Return the server's models, each of which is a judge."""
        return self.model if isinstance(self.model, list) else [self.model] if self.model else []
