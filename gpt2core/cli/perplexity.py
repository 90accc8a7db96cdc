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
@click.option(
    "--context", type=click.IntRange(min=1), help="Longest window, in tokens; the default is the model's whole context."
)
@click.option(
    "--wikitext", is_flag=True,
    help="TEXT_FILE is WikiText as it is distributed: set its spaces as people do, then predict; words and bytes are "
    "counted as they were. So does the GPT-2 paper.",
)  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), help="Read the first so many tokens of the text only.")
@options.dtype
@options.as_json
def perplexity(
    model_dir: Path,
    text_file: Path,
    stride: int | None,
    context: int | None,
    wikitext: bool,
    max_tokens: int | None,
    dtype: str,
    as_json: bool,
) -> None:
    """How well the language model in MODEL_DIR predicts TEXT_FILE: the lower, the better.

    Perplexity a token depends on the tokenizer; a word (white space, with the ends of lines) and bits a byte do not.
    <|endoftext|> separates documents, as in a corpus; it is predicted, too, and is neither a word nor bytes. It also
    stands before the first token, which is predicted like every other.
    """
    import numpy as np

    from gpt2core.corpus.documents import SEPARATOR
    from gpt2core.evaluation.metrics.language_model import nats
    from gpt2core.evaluation.wikitext import detokenize

    if wikitext and max_tokens:
        raise UserError("--wikitext counts the words of the whole file: leave --max-tokens out")
    text = files.read_text(text_file)
    model, tokenizer = options.load_language_model(model_dir, dtype)
    n_positions = model.config.n_positions
    if context and context > n_positions:
        raise UserError(f"--context: {context} is more than the model's {n_positions} tokens")
    context = context or n_positions
    if stride and stride > context:
        raise UserError(f"--stride: {stride} is more than the context of {context} tokens")
    first, *others = SEPARATOR.split(text)
    documents = [text for text in (first, *(other.removeprefix("\n") for other in others)) if text.strip()]
    said = [detokenize(document) for document in documents] if wikitext else documents
    ids = [token for document in said for token in (*tokenizer.encode(document), tokenizer.eot_id)][:-1]
    if not ids:
        raise UserError(f"{text_file}: is empty")
    if max_tokens:
        ids = ids[:max_tokens]
    counted = (
        "".join(documents) if wikitext else tokenizer.decode([token for token in ids if token != tokenizer.eot_id])
    )
    total = nats(model, np.asarray(ids), tokenizer.eot_id, context, stride=stride, batch_size=4)
    n_words = max(1, len(counted.split()) + counted.count("\n"))
    n_bytes = len(counted.encode())
    result = {
        "tokens": len(ids),
        "words": n_words,
        "bytes": n_bytes,
        "nats_per_token": round(total / len(ids), 6),
        "perplexity": _exp(total / len(ids)),
        "word_perplexity": _exp(total / n_words),
        "bits_per_byte": round(total / math.log(2) / n_bytes, 6),
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
