"""`gpt2core respond`: the response to an instruction."""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.cli import options


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
        click.echo(response)
