"""`gpt2core perplexity`: the loss of a language model on a text."""

from __future__ import annotations

import math
from pathlib import Path

import click

from gpt2core import files
from gpt2core.cli import options
from gpt2core.errors import UserError


@click.command(short_help="Measure how well a model predicts a text.")
@options.model_dir
@click.argument("text_file", type=options.PATH)
@click.option(
    "--stride", type=options.POSITIVE,
    help="Tokens from one window of the model's context to the next; the default is half of it. A smaller stride is "
    "slower and gives each token more context.",
)  # fmt: skip
@click.option("--context", type=options.POSITIVE, help="Window length in tokens; the default is the model's context.")
@click.option(
    "--wikitext", is_flag=True,
    help="TEXT_FILE is WikiText as it is distributed: remove its tokenization marks before prediction; words and bytes "
    "are counted in the file, as in the GPT-2 paper.",
)  # fmt: skip
@click.option("--max-tokens", type=options.POSITIVE, help="Maximum number of tokens of the text, the first ones.")
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
    """Measure how well the language model in MODEL_DIR predicts TEXT_FILE; lower values are better.

    Perplexity per token depends on the tokenizer; perplexity per word (words and line ends) and bits per byte do not.
    <|endoftext|> separates documents, as in a corpus. It is predicted, too, but counts as neither word nor bytes. It
    also precedes the first token, which is predicted like every other.
    """
    import numpy as np
    import torch

    from gpt2core.checkpoint.cluster import batches_of_directory
    from gpt2core.checkpoint.decoding import load_for_decoding
    from gpt2core.corpus.documents import SEPARATOR
    from gpt2core.evaluation.metrics.language_model import nats
    from gpt2core.evaluation.wikitext import detokenize
    from gpt2core.inference.sampling import check_finite

    if wikitext and max_tokens:
        raise UserError("--wikitext counts the words of the whole file: leave --max-tokens out")
    text = files.read_document(text_file)
    model, tokenizer = load_for_decoding(model_dir, dtype)
    n_positions = model.config.n_positions
    if context and context > n_positions:
        raise UserError(f"--context: {context} is more than the model's {n_positions} tokens")
    context = context or n_positions
    if stride and stride > context:
        raise UserError(f"--stride: {stride} is more than the context of {context} tokens")
    first, *others = SEPARATOR.split(text)
    documents = [text for text in (first, *(other.removeprefix("\n") for other in others)) if text.strip()]
    ids = [
        token
        for document in documents
        for token in (*tokenizer.encode(detokenize(document) if wikitext else document), tokenizer.eot_id)
    ][:-1][:max_tokens]
    if not ids:
        raise UserError(f"{text_file}: is empty")
    # WikiText's words are those of the distributed file.
    text = "".join(documents) if wikitext else tokenizer.decode([token for token in ids if token != tokenizer.eot_id])
    with batches_of_directory(model_dir, model, tokenizer, dtype) as batches:
        total = nats(model, np.asarray(ids), tokenizer.eot_id, context, stride=stride, batch_size=4, batches=batches)
    check_finite(torch.tensor(total))
    result = _result(total, len(ids), text)
    if as_json:
        options.print_json(result)
        return
    for name, value in result.items():
        cell = "too large" if value is None else f"{value:,}"
        click.echo(f"{name.replace('_', ' '):<16} {cell:>14}")


def _result(nats: float, n_tokens: int, text: str) -> dict[str, float | int | None]:
    """Return counts of a text, and its loss per token, word, and byte; None for a perplexity that is too large."""

    def exp(value: float) -> float | None:
        return round(math.exp(value), 4) if value < 700 else None

    n_words = max(1, len(text.split()) + text.count("\n"))
    n_bytes = len(text.encode())
    return {
        "tokens": n_tokens,
        "words": n_words,
        "bytes": n_bytes,
        "nats_per_token": round(nats / n_tokens, 6),
        "perplexity": exp(nats / n_tokens),
        "word_perplexity": exp(nats / n_words),
        "bits_per_byte": round(nats / math.log(2) / n_bytes, 6),
    }
