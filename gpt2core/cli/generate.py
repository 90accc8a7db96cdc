"""`gpt2core generate`, `gpt2core respond`: texts of language models."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from gpt2core import files, runtime
from gpt2core.cli import options
from gpt2core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2core.inference import Sampling, TextStream

MAX_PROMPT_BYTES = 16 << 20
INTERRUPTED = 130  # exit code of a shell after Ctrl-C
SAMPLES_PER_BATCH = 32  # each has its own keys and values: 74 KB per token with GPT-2 124M


@click.command(short_help="Continue a text.")
@options.model_dir
@click.option("--prompt", default="", help="The start of the text; empty starts a new document.")
@click.option(
    "--prompt-file", type=click.File("rb"),
    help="A UTF-8 file with the prompt, without its last line break; - is standard input.",
)  # fmt: skip
@options.max_new_tokens(100, "Maximum number of tokens to add.")
@options.sampling
@options.seed("sampling")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End before this text. May be given repeatedly.")
@click.option(
    "--num-samples", type=click.IntRange(1, 10_000), default=1, show_default=True,
    help="Number of continuations; the first uses --seed, the next --seed + 1, and so on.",
)  # fmt: skip
@click.option("--stream/--no-stream", default=None, help="Print the text while it is generated; default on a terminal.")
@click.option(
    "--lookup/--no-lookup", default=True, show_default=True,
    help="With --temperature 0: draft tokens from the text so far and check several in one pass, which is faster.",
)  # fmt: skip
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

    Ends at the end of a document, before a --stop text, after --max-new-tokens, or at Ctrl-C with the text so far. With
    --json, each sample is an object on its own line.
    """
    if prompt_file:
        if prompt:
            raise click.UsageError("give either --prompt or --prompt-file")
        prompt = _read_prompt(prompt_file)
    if stream and (as_json or num_samples > 1):
        raise click.UsageError("--stream prints one text while it is generated: leave out --json and --num-samples")
    if stream is None:
        stream = not as_json and num_samples == 1 and sys.stdout.isatty()

    from gpt2core import inference
    from gpt2core.checkpoint.decoding import load_for_decoding

    model, tokenizer = load_for_decoding(model_dir, dtype)
    texts = [inference.TextStream(tokenizer.token_bytes, tokenizer.eot_id, stops) for _ in range(num_samples)]
    ids = tokenizer.encode(prompt) or [tokenizer.eot_id]
    options.show(prompt if stream else "", nl=False)
    for start in range(0, num_samples, SAMPLES_PER_BATCH):
        rows = texts[start : start + SAMPLES_PER_BATCH]
        columns = inference.stream(model, [ids] * len(rows), max_new_tokens, sampling, seed + start, lookup=lookup)
        if not stream:
            columns = runtime.progress(columns, what="generate", unit="token", total=max_new_tokens)
        is_complete = _fill(rows, columns, echo=stream)
        if not is_complete:
            break
    _print(prompt, texts, seed, stream, as_json)
    if not is_complete:
        sys.exit(INTERRUPTED)


@click.command(short_help="Answer an instruction.")
@options.model_dir
@click.option("--instruction", required=True, help="The task.")
@click.option("--input", "input_text", default="", help="The input of the task, if it has one.")
@options.max_new_tokens(256, "Maximum length of the response.")
@options.dtype
@options.as_json
def respond(model_dir: Path, instruction: str, input_text: str, max_new_tokens: int, dtype: str, as_json: bool) -> None:
    """Answer an instruction with the instruction-tuned model in MODEL_DIR, with the prompt that it was tuned with."""
    from gpt2core.checkpoint.chat_template import instruction_prompt
    from gpt2core.checkpoint.decoding import load_for_decoding
    from gpt2core.inference.respond import respond as answer

    model, tokenizer = load_for_decoding(model_dir, dtype)
    entry = {"instruction": instruction, "input": input_text}
    (response,) = answer(model, tokenizer, [entry], max_new_tokens, form=instruction_prompt(model_dir))
    if as_json:
        options.print_json({**entry, "response": response})
    else:
        options.show(response)


def _read_prompt(file: BinaryIO) -> str:
    name = getattr(file, "name", "standard input")
    content = file.read(MAX_PROMPT_BYTES + 1)
    if len(content) > MAX_PROMPT_BYTES:
        raise UserError(f"{name}: is larger than {MAX_PROMPT_BYTES:,} bytes, the limit for a prompt")
    return files.lf_line_ends(files.decode_text(content, name)).removesuffix("\n")


def _fill(texts: Sequence[TextStream], columns: Iterable[Tensor], *, echo: bool) -> bool:
    """Add columns of tokens to the texts until all have ended. Return False after Ctrl-C."""

    def show(piece: str) -> None:
        if echo and piece:
            options.show(piece, nl=False)

    is_complete = True
    try:
        for column in columns:
            for text, token_id in zip(texts, column.tolist(), strict=True):
                show(text.push(token_id))
            if all(text.finished for text in texts):
                break
    except KeyboardInterrupt:
        is_complete = False
    for text in texts:
        show(text.close())
    return is_complete


def _print(prompt: str, texts: Sequence[TextStream], seed: int, is_streamed: bool, as_json: bool) -> None:
    """Print the texts, or the end of a text that was streamed."""
    if is_streamed:
        click.echo()
        return
    for row, text in enumerate(texts):
        if as_json:
            options.print_json({"prompt": prompt, "text": text.text, "new_tokens": text.n_tokens, "seed": seed + row})
            continue
        if row > 0:
            click.echo()
        if len(texts) > 1:
            click.echo(f"--- seed {seed + row} ---")
        options.show(prompt + text.text)
