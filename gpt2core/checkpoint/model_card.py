"""The model card of a model directory: `README.md` with metadata, as Hugging Face's hub and people read it.

It depends on the model, its metrics, and its params only: no time, machine, path, or version, so that the same results
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2core import files
from gpt2core.checkpoint.config_json import TRANSFORMERS_TYPE, Described, read_config_json

CARD = "README.md"
USES = {
    "text-generation": """\
It continues texts like those that it was trained on. It is meant for learning, for experiments, and as the base of
fine-tunings.

Do not use it where a wrong text can harm somebody: for advice on health, law, money, or safety, for decisions about
people, or for texts that nobody reads before they are published. A model of this kind writes fluently what is not true,
and it repeats the prejudices and the wording of its training data.""",
    "text-classification": """\
It classifies texts like those that it was trained on. It is meant for learning and for experiments.

Do not use it for decisions about people, or where a wrong class can harm somebody. Texts of another kind, language, or
time than the training data are classified too, with high probabilities, and often wrongly.""",
}


@dataclass(frozen=True)
class ModelCard:
    """What a model card says about how a model was made.

    Args:
        title: of the card.
        made: sentences about how it was made and from what.
        metrics: results of the stage; only single numbers and texts are shown.
        params: of the stage, by their names in params.yaml.
        license: identifier of a license for the metadata, if known.
    """

    title: str
    made: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None


def write_model_card(folder: Path, card: ModelCard) -> None:
    """Write `README.md` into a model directory."""
    files.write_text(folder / CARD, card_text(card, read_config_json(folder / "config.json")))


def card_text(card: ModelCard, described: Described) -> str:
    """Return the text of a model card."""
    task = "text-classification" if described.is_classifier else "text-generation"
    opened_by = "transformers" if described.model_type == TRANSFORMERS_TYPE else "gpt2core"
    metadata = [
        *([f"license: {card.license}"] if card.license else []),
        f"library_name: {opened_by}",
        f"pipeline_tag: {task}",
        "tags: [gpt2, gpt2core]",
    ]
    config = described.config
    sizes = {
        "layers": config.n_layer, "heads per layer": config.n_head, "hidden size": config.n_embd,
        "context in tokens": config.n_positions, "vocabulary": config.vocab_size,
        **({"classes": ", ".join(described.labels)} if described.labels else {}),
    }  # fmt: skip
    metrics = {key: value for key, value in card.metrics.items() if isinstance(value, int | float | str)}
    parts = [
        "---", *metadata, "---", "",
        f"# {card.title}", "",
        card.made, "",
        "## Model", "",
        f"A GPT-2 ({'classifier' if described.is_classifier else 'language model'}; Radford et al. 2019).", "",
        *_table(("size", "value"), sizes),
        "## Use", "",
        USES[task], "",
        "```python", *_example(task, opened_by), "```", "",
        *(["## Results", "", *_table(("metric", "value"), metrics)] if metrics else []),
        *(["## Params", "", *_table(("param", "value"), card.params)] if card.params else []),
        "Made by the pipeline gpt2core, which makes the same bytes again from the same params and data.",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _example(task: str, opened_by: str) -> list[str]:
    if opened_by == "transformers":
        text = "You won a free lamp!" if task == "text-classification" else "One day"
        return ["import transformers", "", f'transformers.pipeline("{task}", "path/to/this/folder")("{text}")']
    return [
        "import gpt2core", "",
        'model, tokenizer = gpt2core.load_classifier("path/to/this/folder")',
        'gpt2core.classify(model, tokenizer, ["You won a free lamp!"])',
    ]  # fmt: skip


def _table(header: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    """Return the lines of a Markdown table of names and values, and a blank line."""
    cells = [(key, _cell(value)) for key, value in rows.items()]
    return [f"| {header[0]} | {header[1]} |", "|---|---|", *(f"| {key} | {cell} |" for key, cell in cells), ""]


def _cell(value: Any) -> str:
    """Return a value for a cell: texts of any kind stay text."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"`{' '.join(text.replace('`', chr(39)).replace('|', '/').split())}`" if text else ""
