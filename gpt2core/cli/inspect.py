"""`gpt2core inspect`: a look inside a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt2core import files, runtime
from gpt2core.cli import options

if TYPE_CHECKING:
    from gpt2core.inspect import ClassifierInspection, LanguageModelInspection

PAGE, NUMBERS = "index.html", "inspection.json"


@click.command(short_help="Look inside a model while it reads a text.")
@options.model_dir
@click.option("--prompt", default="", help="The text; an empty one is the start of a document.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help=f"A directory for {PAGE} (interactive, opens offline), {NUMBERS}, and pictures such as attention.png. "
    "Existing files with these names are replaced.",
)  # fmt: skip
@click.option("--top", type=click.IntRange(1, 100), default=5, show_default=True, help="Number of next tokens to show.")
@click.option(
    "--temperature", "temperatures", type=click.FloatRange(min=0), multiple=True, default=(0.5, 1.0, 2.0),
    show_default=True, help="Show the next token's distribution at this temperature. May be given repeatedly.",
)  # fmt: skip
@options.as_json
def inspect(
    model_dir: Path, prompt: str, out: Path | None, top: int, temperatures: tuple[float, ...], as_json: bool
) -> None:
    """Look inside the model in MODEL_DIR while it reads a text.

    Shows the tokens with their ids and losses, the next token that each layer predicts (the logit lens), and the effect
    of temperature on the next token's distribution; --out and --json also give the attention of every head. For a
    classifier: the tokens, the class by layer, and the attention.
    """
    from gpt2core.checkpoint.model_dir import load_with_tokenizer
    from gpt2core.inspect import inspect as inspect_model

    model, tokenizer = load_with_tokenizer(model_dir, device=runtime.device())
    ids = tokenizer.encode(prompt) or [tokenizer.eot_id]
    inspection = inspect_model(model, tokenizer, ids, top=top, temperatures=temperatures)
    if out:
        _write(out, model_dir, prompt, inspection)
    if as_json:
        options.print_json(inspection.to_json())
        return
    _print_tables(inspection)
    if out:
        click.echo(f"Attention and all other results: open {out / PAGE} in a browser.")
    else:
        click.echo("Attention of every head: --out DIR writes a page and pictures, --json prints the numbers.")


def _write(out: Path, model_dir: Path, prompt: str, inspection: LanguageModelInspection | ClassifierInspection) -> None:
    from gpt2core.inspect import LanguageModelInspection
    from gpt2core.report.inside import inspection_page
    from gpt2core.report.inspection_figures import draw_temperatures
    from gpt2core.tracking.plots import text

    text.attention_heatmaps(inspection.attention.numpy(), inspection.tokens, out / "attention.png")
    if isinstance(inspection, LanguageModelInspection):
        draw_temperatures(inspection, out / "temperature.png")
        text.token_loss(inspection.tokens, inspection.loss_nats, out / "token_loss.png")
    files.write_json(out / NUMBERS, {"model": str(model_dir), "prompt": prompt, **inspection.to_json()})
    files.write_text(out / PAGE, inspection_page(str(model_dir), prompt, inspection))


def _print_tables(inspection: LanguageModelInspection | ClassifierInspection) -> None:
    from gpt2core.inspect import LanguageModelInspection

    tokens = [
        (str(number), str(token_id), token)
        for number, (token_id, token) in enumerate(zip(inspection.ids, inspection.tokens, strict=True), start=1)
    ]
    if not isinstance(inspection, LanguageModelInspection):
        options.print_table("Tokens", ("#", "id", "token"), tokens, n_text_columns=3)
        classes = [[f"{p:.1%}" for p in row] for row in inspection.classes]
        _print_by_layer("Class, if the model ended at", inspection.labels, classes)
        return
    losses = ["" if loss is None else f"{loss:.3f}" for loss in inspection.loss_nats]
    rows: list[tuple[str, ...] | None] = [(*row, loss) for row, loss in zip(tokens, losses, strict=True)]
    if inspection.mean_loss_nats is not None:
        rows += [None, ("", "", "mean", f"{inspection.mean_loss_nats:.3f}")]
    options.print_table("Tokens", ("#", "id", "token", "loss, nats"), rows, n_text_columns=3)
    lens = [[f"{c.token} {_percent(c.probability)}" for c in layer[-1]] for layer in inspection.lens]
    _print_by_layer("Next token, if the model ended at", [f"{i}." for i in range(1, len(lens[0]) + 1)], lens)
    options.print_table(
        "Next token by temperature",
        ("temperature", *(candidate.token for candidate in inspection.candidates), "entropy, bits"),
        [
            (f"{row.temperature:g}", *(f"{p:.1%}" for p in row.probabilities), f"{row.entropy_bits:.2f}")
            for row in inspection.temperatures
        ],
        n_text_columns=0,
    )


def _percent(p: float) -> str:
    return f"{p:.0%}" if p >= 0.005 else "<1%"


def _print_by_layer(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a row for each layer, the last one, which is the model's output, at the top."""
    last = len(rows) - 1
    names = ["embeddings", *(f"layer {layer}" for layer in range(1, last)), f"layer {last}, the model"]
    table = [(name, *row) for name, row in zip(names, rows, strict=True)]
    options.print_table(title, ("", *columns), reversed(table), n_text_columns=len(columns) + 1)
