"""What several commands share."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2core.errors import UserError
from gpt2core.runtime import DECODING_DTYPES

if TYPE_CHECKING:
    from gpt2core.model import GPT, GPTClassifier
    from gpt2core.model.inference import Packed
    from gpt2core.tokenizer import Tokenizer

model_dir = click.argument("model_dir", type=click.Path(path_type=Path))
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
seed = click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the draws.")

dtype = click.option(
    "--dtype",
    type=click.Choice(DECODING_DTYPES),
    default="float32",
    show_default=True,
    help="Of the weights: smaller ones are read faster; `gpt2core perplexity` tells what they cost.",
)


def sampling(command: Any) -> Any:
    """The options of `Sampling`, given to the command as one argument `sampling`."""

    @functools.wraps(command)
    def with_sampling(
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        min_p: float | None,
        repetition_penalty: float,
        **others: Any,
    ) -> Any:
        from gpt2core.inference import Sampling

        return command(sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty), **others)

    probability = click.FloatRange(min=0, max=1, min_open=True)
    options = (
        click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True,
                     help="0 takes the likeliest token each time; higher is more varied."),
        click.option("--top-k", type=click.IntRange(min=1), help="Draw from the k likeliest tokens only."),
        click.option("--top-p", type=probability,
                     help="Draw from the smallest set of likeliest tokens that holds this probability."),
        click.option("--min-p", type=probability,
                     help="Draw from the tokens at least this share as likely as the likeliest."),
        click.option("--repetition-penalty", type=click.FloatRange(min=0, min_open=True), default=1.0,
                     show_default=True, help="Above 1 makes tokens that were there before less likely."),
    )  # fmt: skip
    for option in reversed(options):
        with_sampling = option(with_sampling)
    return with_sampling


def load_language_model(path: Path, dtype: str = "float32") -> tuple[Packed, Tokenizer]:
    """Load a language model, ready for decoding, with its tokenizer. Raises UserError if it is something else."""
    from gpt2core import runtime
    from gpt2core.checkpoint import model_dir
    from gpt2core.model.inference import pack

    model, tokenizer = model_dir.load_language_model(path, device=runtime.device())
    return pack(model, dtype), tokenizer


def load_classifier(path: Path) -> tuple[GPTClassifier, Tokenizer]:
    """Load a classifier with its tokenizer. Raises UserError if it is something else."""
    from gpt2core import runtime
    from gpt2core.checkpoint import model_dir

    return model_dir.load_classifier(path, device=runtime.device())


def load_any(path: Path) -> tuple[GPT | GPTClassifier, Tokenizer]:
    """Load a model of either kind with its tokenizer. Raises UserError if it has none."""
    from gpt2core import runtime
    from gpt2core.checkpoint import model_dir

    return model_dir.load_with_tokenizer(path, device=runtime.device())


def needs(extra: str, *modules: str) -> None:
    """Raises UserError that says what to install, if a module of an extra is not there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        command = click.get_current_context().command.name
        raise UserError(f"`gpt2core {command}` needs {' and '.join(missing)}; install: pip install 'gpt2core[{extra}]'")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
