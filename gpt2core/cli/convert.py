"""`gpt2core convert`: OpenAI's checkpoint to a model directory."""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.cli import options


@click.command(short_help="Convert OpenAI's checkpoint to a model directory.")
@click.argument("src_dir", type=options.PATH)
@click.argument("out_dir", type=options.PATH)
@options.as_json
def convert(src_dir: Path, out_dir: Path, as_json: bool) -> None:
    """Convert OpenAI's GPT-2 checkpoint in SRC_DIR to a model directory OUT_DIR.

    SRC_DIR has OpenAI's files (hparams.json, model.ckpt.index, ...). TensorFlow is not needed; every tensor's checksum
    is verified. This program and transformers can open OUT_DIR.
    """
    from gpt2core.checkpoint import openai

    openai.convert(src_dir, out_dir)
    if as_json:
        options.print_json({"model_dir": str(out_dir)})
    else:
        click.echo(f"{out_dir}: converted; try: gpt2core generate {out_dir} --prompt Hello")
