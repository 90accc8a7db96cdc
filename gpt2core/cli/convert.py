"""`gpt2core convert`, `export-openai`, `merge`: other formats of models to model directories, and back."""

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


@click.command("export-openai", short_help="Export a model directory to OpenAI's format.")
@options.model_dir
@click.argument("out_dir", type=options.PATH)
@options.as_json
def export_openai(model_dir: Path, out_dir: Path, as_json: bool) -> None:
    """Write the language model in MODEL_DIR in OpenAI's TensorFlow format to OUT_DIR.

    TensorFlow is not needed; it can read the result, as can `gpt2core convert`. model.ckpt.meta has no graph. That
    format has no classifiers and no untied heads; they are refused.
    """
    from gpt2core.checkpoint.openai_export import export

    export(model_dir, out_dir)
    if as_json:
        options.print_json({"openai_dir": str(out_dir)})
    else:
        click.echo(f"{out_dir}: written; back again: gpt2core convert {out_dir} OUT_DIR")


@click.command(short_help="Merge a LoRA adapter into its base model.")
@click.argument("base_dir", type=options.PATH)
@click.argument("adapter_dir", type=options.PATH)
@click.argument("out_dir", type=options.PATH)
@options.as_json
def merge(base_dir: Path, adapter_dir: Path, out_dir: Path, as_json: bool) -> None:
    """Merge the LoRA adapter in ADAPTER_DIR into the model in BASE_DIR, as a new model directory OUT_DIR.

    ADAPTER_DIR has adapter_config.json and adapter_model.safetensors, as PEFT and finetune-instruct save them. Its
    configuration names the base that it was trained on.
    """
    from gpt2core.checkpoint.merge import merge as merge_adapter

    merge_adapter(base_dir, adapter_dir, out_dir)
    if as_json:
        options.print_json({"model_dir": str(out_dir)})
    else:
        click.echo(f"{out_dir}: merged; try: gpt2core generate {out_dir} --prompt Hello")
