"""`gpt2core perplexity`"""

from __future__ import annotations

import math
from pathlib import Path

import click

from gpt2core import files
from gpt2core.cli import options
from gpt2core.errors import UserError


@click.command(short_help="How well a model predicts a text.")
@options.model_dir
@click.argument("text_file", type=click.Path(path_type=Path))
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens from one window of the model's context to the next; the default is half of it. Smaller is slower, and "
    "each token sees more of what comes before.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Read the first so many tokens of the text only.")
@options.dtype
@options.as_json
def perplexity(
    model_dir: Path, text_file: Path, stride: int | None, max_tokens: int | None, dtype: str, as_json: bool
) -> None:
    """How well the language model in MODEL_DIR predicts TEXT_FILE: the lower, the better.

    Perplexity a token depends on the tokenizer; a word (white space, with the ends of lines) and bits a byte do not.
    <|endoftext|> separates documents, as in a corpus; it is predicted, too, and is neither a word nor bytes.
    """
    import numpy as np

    from gpt2core.data.documents import SEPARATOR
    from gpt2core.evaluate.language_model import nats

    text = files.read_text(text_file)
    model, tokenizer = options.load_language_model(model_dir, dtype)
    context = model.config.n_positions
    if stride and stride > context:
        raise UserError(f"--stride: {stride} is more than the model's context of {context} tokens")
    first, *others = SEPARATOR.split(text)
    documents = [text for text in (first, *(other.removeprefix("\n") for other in others)) if text.strip()]
    ids = [token for document in documents for token in (*tokenizer.encode(document), tokenizer.eot_id)][:-1]
    if not ids:
        raise UserError(f"{text_file}: is empty")
    if max_tokens:
        ids = ids[:max_tokens]
    text = tokenizer.decode([token for token in ids if token != tokenizer.eot_id])
    total = nats(model, np.asarray(ids), tokenizer.eot_id, context, stride=stride, batch_size=4)
    n_words = max(1, len(text.split()) + text.count("\n"))
    result = {
        "tokens": len(ids),
        "nats_per_token": round(total / len(ids), 6),
        "perplexity": _exp(total / len(ids)),
        "word_perplexity": _exp(total / n_words),
        "bits_per_byte": round(total / math.log(2) / len(text.encode()), 6),
    }
    if as_json:
        options.print_json(result)
        return
    for name, value in result.items():
        shown = "too large" if value is None else f"{value:,}"
        click.echo(f"{name.replace('_', ' '):<16} {shown:>14}")


def _exp(nats: float) -> float | None:
    """None beyond what a float holds."""
    return round(math.exp(nats), 4) if nats < 700 else None
