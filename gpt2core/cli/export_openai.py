"""`gpt2core export-openai`"""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.cli import options


@click.command("export-openai", short_help="A model directory to OpenAI's checkpoint.")
@options.model_dir
@click.argument("out_dir", type=click.Path(path_type=Path))
@options.as_json
def export_openai(model_dir: Path, out_dir: Path, as_json: bool) -> None:
    """Write the language model in MODEL_DIR in OpenAI's TensorFlow format to OUT_DIR.

    TensorFlow is not needed, and reads what is written; so does `gpt2core convert`. model.ckpt.meta is there, but holds
    no graph. A classifier or a head of its own has no place in that format and is refused.
    """
    from gpt2core.checkpoint.openai_export import export

    export(model_dir, out_dir)
    if as_json:
        options.print_json({"openai_dir": str(out_dir)})
    else:
        click.echo(f"{out_dir}: written; back again: gpt2core convert {out_dir} OUT_DIR")
