"""`gpt2core generate`"""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.cli import options


@click.command()
@options.model_dir
@click.option("--prompt", default="", help="How the text begins; empty starts a new document.")
@options.sampling
@options.as_json
def generate(
    model_dir: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Continue a text with the language model in MODEL_DIR.

    Ends at the end of a document or after --max-new-tokens.
    """
    import torch

    from gpt2core.generate import generate as continue_ids

    model, tokenizer = options.load_language_model(model_dir)
    ids = tokenizer.encode(prompt) or [tokenizer.eot_id]
    device = model.transformer.wte.weight.device
    out = continue_ids(
        model, torch.tensor([ids], device=device), max_new_tokens, temperature, top_k, top_p, seed, tokenizer.eot_id
    )
    new = out[0, len(ids) :].tolist()
    if tokenizer.eot_id in new:
        new = new[: new.index(tokenizer.eot_id)]
    text = tokenizer.decode(new)
    if as_json:
        options.print_json({"prompt": prompt, "text": text, "new_tokens": len(new)})
    else:
        click.echo(prompt + text)
