"""`gpt2core generate`"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from gpt2core import runtime
from gpt2core.cli import options
from gpt2core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2core.inference import Sampling, TextStream

INTERRUPTED = 130  # what a shell reports after Ctrl-C
SAMPLES_AT_ONCE = 32  # each holds keys and values of its own: 74 KB a token with GPT-2 124M


@click.command(short_help="Continue a text.")
@options.model_dir
@click.option("--prompt", default="", help="How the text begins; empty starts a new document.")
@click.option(
    "--prompt-file",
    type=click.File("rb"),
    help="A UTF-8 file that holds the prompt, without its last line break; - is standard input.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1, 1_000_000),
    default=100,
    show_default=True,
    help="How many tokens to add at most.",
)
@options.sampling
@options.seed
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End before this text. May be given repeatedly.")
@click.option(
    "--num-samples",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="Several continuations at once; the first draws with --seed, the next with --seed + 1, and so on.",
)
@click.option("--stream/--no-stream", default=None, help="Print the text as it comes; the default on a terminal.")
@click.option(
    "--lookup/--no-lookup",
    default=True,
    show_default=True,
    help="With --temperature 0: guess tokens from the text so far and check several in one pass, which is faster.",
)
@options.dtype
@options.as_json
def generate(
    model_dir: Path,
    prompt: str,
    prompt_file: BinaryIO | None,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    stops: tuple[str, ...],
    num_samples: int,
    stream: bool | None,
    lookup: bool,
    dtype: str,
    as_json: bool,
) -> None:
    """Continue a text with the language model in MODEL_DIR.

    Ends at the end of a document, before a --stop text, after --max-new-tokens, or at Ctrl-C with what came so far.
    With --json there is one object a sample, each on a line of its own.
    """
    if prompt_file:
        if prompt:
            raise click.UsageError("give either --prompt or --prompt-file")
        prompt = _read_prompt(prompt_file)
    if stream and (as_json or num_samples > 1):
        raise click.UsageError("--stream prints one text as it comes: leave out --json and --num-samples")
    if stream is None:
        stream = not as_json and num_samples == 1 and sys.stdout.isatty()

    from gpt2core import inference as engine

    model, tokenizer = options.load_language_model(model_dir, dtype)
    texts = [engine.TextStream(tokenizer.token_bytes, tokenizer.eot_id, stops) for _ in range(num_samples)]
    ids = tokenizer.encode(prompt) or [tokenizer.eot_id]
    if stream:
        click.echo(prompt, nl=False)
    for start in range(0, num_samples, SAMPLES_AT_ONCE):
        rows = texts[start : start + SAMPLES_AT_ONCE]
        columns = engine.stream(model, [ids] * len(rows), max_new_tokens, sampling, seed + start, lookup=lookup)
        if not stream:
            columns = runtime.progress(columns, what="generate", unit="token", total=max_new_tokens)
        completed = _take(columns, rows, echo=stream)
        if not completed:
            break
    if stream:
        click.echo()
    else:
        _print(prompt, texts, seed, as_json)
    if not completed:
        sys.exit(INTERRUPTED)


def _read_prompt(file: BinaryIO) -> str:
    try:
        text = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name}: byte {error.start} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def _take(columns: Iterable[Tensor], texts: Sequence[TextStream], *, echo: bool) -> bool:
    """Fill each row's text until all have ended. False if Ctrl-C came first."""

    def show(piece: str) -> None:
        if echo and piece:
            click.echo(piece, nl=False)

    completed = True
    try:
        for column in columns:
            for text, token_id in zip(texts, column.tolist(), strict=True):
                show(text.push(token_id))
            if all(text.finished for text in texts):
                break
    except KeyboardInterrupt:
        completed = False
    for text in texts:
        show(text.close())
    return completed


def _print(prompt: str, texts: Sequence[TextStream], seed: int, as_json: bool) -> None:
    for row, text in enumerate(texts):
        if as_json:
            options.print_json({"prompt": prompt, "text": text.text, "new_tokens": text.n_tokens, "seed": seed + row})
        else:
            if row > 0:
                click.echo()
            if len(texts) > 1:
                click.echo(f"--- seed {seed + row} ---")
            click.echo(prompt + text.text)
