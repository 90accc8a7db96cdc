"""`gpt2core respond`"""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.cli import options


@click.command(short_help="Answer an instruction.")
@options.model_dir
@click.option("--instruction", required=True, help="What to do.")
@click.option("--input", "input_text", default="", help="What to do it with, where the instruction needs something.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1, 1_000_000), default=256, show_default=True, help="Longest response."
)
@options.dtype
@options.as_json
def respond(model_dir: Path, instruction: str, input_text: str, max_new_tokens: int, dtype: str, as_json: bool) -> None:
    """Answer an instruction with the instruction-tuned model in MODEL_DIR, in the form that it was tuned with."""
    from gpt2core import prompts
    from gpt2core.checkpoint.chat_template import prompt_of
    from gpt2core.inference.respond import respond as answer

    model, tokenizer = options.load_language_model(model_dir, dtype)
    entry = {"instruction": instruction, "input": input_text}
    form = prompt_of(model_dir) or prompts.alpaca
    (response,) = answer(model, tokenizer, [entry], max_new_tokens, form=form)
    if as_json:
        options.print_json({**entry, "response": response})
    else:
        click.echo(response)
