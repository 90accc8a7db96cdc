"""Count the sampled sentences of a model that the grammar of the tales accepts.

python scripts/parse_samples.py models/pretrained
"""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core import numerics
from gpt2core.runtime import stage_main


@click.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--texts", type=click.IntRange(1), default=100, show_default=True, help="Texts to sample, temperature 1.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
def main(model_dir: Path, texts: int, seed: int) -> None:
    """Sample texts from MODEL_DIR and parse the sentences of the texts that ended."""
    numerics.prepare("portable")  # before PyTorch loads: the README's figure is the one that you get
    numerics.start("portable")
    import torch

    from gpt2core.checkpoint.decoding import load_for_decoding
    from gpt2core.inference import generate
    from gpt2core.sources.synthetic import parses_sentence, split_sentences

    model, tokenizer = load_for_decoding(model_dir)
    eot_id = tokenizer.eot_id
    starts = torch.full((texts, 1), eot_id)
    ids = generate(model, starts, model.config.n_positions - 1, temperature=1.0, seed=seed, eos_id=eot_id)
    ended = [row[: row.index(eot_id)] for row in ids[:, 1:].tolist() if eot_id in row]
    sentences = [sentence for row in ended for sentence in split_sentences(tokenizer.decode(row))]
    parsed = sum(map(parses_sentence, sentences))
    click.echo(f"{parsed} of {len(sentences)} sentences parse ({parsed / max(1, len(sentences)):.1%})")


if __name__ == "__main__":
    stage_main(main)
