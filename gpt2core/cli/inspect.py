"""`gpt2core inspect`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt2core import files
from gpt2core.cli import options

if TYPE_CHECKING:
    from gpt2core.inspect import ClassifierInspection, LanguageModelInspection

PAGE, NUMBERS = "index.html", "inspection.json"


@click.command(short_help="Look inside a model while it reads a text.")
@options.model_dir
@click.option("--prompt", default="", help="The text; empty is the start of a document.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"A directory for {PAGE} (interactive, opens offline), {NUMBERS} and the pictures, attention.png among them; "
    "what it holds under these names is replaced.",
)
@click.option("--top", type=click.IntRange(1, 100), default=5, show_default=True, help="How many next tokens to tell.")
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(min=0),
    multiple=True,
    default=(0.5, 1.0, 2.0),
    show_default=True,
    help="Show the next token's distribution at this temperature. May be given repeatedly.",
)
@options.as_json
def inspect(
    model_dir: Path, prompt: str, out: Path | None, top: int, temperatures: tuple[float, ...], as_json: bool
) -> None:
    """Look inside the model in MODEL_DIR while it reads a text.

    Shows the tokens with their ids and losses, what each layer would already say next (the logit lens), and how
    temperature changes the next token's distribution; --out and --json also give the attention of every head. Of a
    classifier: the tokens, the class by layer, and the attention.
    """
    from gpt2core.inspect import inspect as look_inside

    model, tokenizer = options.load_any(model_dir)
    ids = tokenizer.encode(prompt) or [tokenizer.eot_id]
    inspection = look_inside(model, tokenizer, ids, top=top, temperatures=temperatures)
    if out:
        _write(out, model_dir, prompt, inspection)
    if as_json:
        options.print_json(inspection.to_json())
        return
    console = Console(highlight=False)
    for table in _tables(inspection):
        console.print(table)
        console.print()
    if out:
        click.echo(f"Attention and all the rest: open {out / PAGE} in a browser.")
    else:
        console.print(Text("Attention of every head: --out DIR makes a page and pictures, --json gives the numbers."))


def _write(out: Path, model_dir: Path, prompt: str, inspection: LanguageModelInspection | ClassifierInspection) -> None:
    from gpt2core.inspect import LanguageModelInspection
    from gpt2core.report.inside import inspection_page
    from gpt2core.tracking import plots

    plots.attention_heatmaps(inspection.attention.numpy(), inspection.tokens, out / "attention.png")
    if isinstance(inspection, LanguageModelInspection):
        candidates = [candidate.token for candidate in inspection.candidates]
        plots.temperature_effect(candidates, inspection.by_temperature, out / "temperature.png")
        plots.token_loss(inspection.tokens, inspection.loss_nats, out / "token_loss.png")
    files.write_json(out / NUMBERS, {"model": str(model_dir), "prompt": prompt, **inspection.to_json()})
    files.write_text(out / PAGE, inspection_page(str(model_dir), prompt, inspection))


def _tables(inspection: LanguageModelInspection | ClassifierInspection) -> list[Table]:
    from gpt2core.inspect import LanguageModelInspection

    tokens = _table("Tokens")
    tokens.add_column("#", justify="right")
    tokens.add_column("id", justify="right")
    tokens.add_column("token")
    rows: list[tuple[str, str, Text]] = [
        (str(i + 1), str(t), Text(s)) for i, (t, s) in enumerate(zip(inspection.ids, inspection.tokens, strict=True))
    ]
    if not isinstance(inspection, LanguageModelInspection):
        for row in rows:
            tokens.add_row(*row)
        return [tokens, _by_layer("Class, if the model ended at", inspection.labels, [
            [f"{p:.1%}" for p in row] for row in inspection.classes
        ])]  # fmt: skip

    tokens.add_column("loss, nats", justify="right")
    for row, loss in zip(rows, inspection.loss_nats, strict=True):
        tokens.add_row(*row, "" if loss is None else f"{loss:.3f}")
    if inspection.mean_loss_nats is not None:
        tokens.add_section()
        tokens.add_row("", "", "mean", f"{inspection.mean_loss_nats:.3f}")
    shown = [[f"{c.token} {_percent(c.probability)}" for c in layer[-1]] for layer in inspection.lens]
    lens = _by_layer("Next token, if the model ended at", [f"{i + 1}." for i in range(len(shown[0]))], shown)
    heat = _table("Next token by temperature")
    heat.add_column("temperature", justify="right")
    for candidate in inspection.candidates:
        heat.add_column(Text(candidate.token), justify="right")
    heat.add_column("entropy, bits", justify="right")
    for at in inspection.temperatures:
        heat.add_row(f"{at.temperature:g}", *(f"{p:.1%}" for p in at.probabilities), f"{at.entropy_bits:.2f}")
    return [tokens, lens, heat]


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _percent(p: float) -> str:
    return f"{p:.0%}" if p >= 0.005 else "<1%"


def _by_layer(title: str, columns: tuple[str, ...] | list[str], rows: list[list[str]]) -> Table:
    """The last layer, which is the model's own answer, at the top."""
    table = _table(title)
    table.add_column("")
    for name in columns:
        table.add_column(Text(name))
    last = len(rows) - 1
    for layer in range(last, -1, -1):
        name = "embeddings" if layer == 0 else f"layer {layer}{', the model' * (layer == last)}"
        table.add_row(name, *map(Text, rows[layer]))
    return table
