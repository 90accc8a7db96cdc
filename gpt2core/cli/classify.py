"""`gpt2core classify`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpt2core.cli import options


@click.command(short_help="Name the class of texts.")
@options.model_dir
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@options.as_json
def classify(model_dir: Path, texts: tuple[str, ...], as_json: bool) -> None:
    """Name the class of each TEXT with the classifier in MODEL_DIR, and how sure it is."""
    from gpt2core.train.classify import encode, predict

    model, tokenizer = options.load_classifier(model_dir)
    ids, _ = encode(texts, tokenizer, model.config.n_positions, None)
    results: list[dict[str, Any]] = []
    for text, p in zip(texts, predict(model, ids).softmax(-1).tolist(), strict=True):
        best = max(range(len(p)), key=p.__getitem__)
        probabilities = {label: round(value, 6) for label, value in zip(model.labels, p, strict=True)}
        results.append({"text": text, "label": model.labels[best], "probabilities": probabilities})
    if as_json:
        options.print_json(results)
        return
    for result in results:
        label = result["label"]
        click.echo(f"{label:<6} {result['probabilities'][label]:6.1%}  {result['text']}")
