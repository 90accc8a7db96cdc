"""The page of one inspection, and the data of its script."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from gpt2core.inspect import ClassifierInspection, Inspection, LanguageModelInspection
from gpt2core.report.inspection_figures import draw_temperatures
from gpt2core.report.page import Picture, Table, picture, render
from gpt2core.tracking.plots import text


def inspection_page(name: str, prompt: str, inspection: LanguageModelInspection | ClassifierInspection) -> str:
    """Return a self-contained page about a model, by its name, and the inspected text."""
    layers, heads = inspection.attention.shape[:2]
    n_tokens = len(inspection.tokens)
    description = f"{n_tokens} token{'s' * (n_tokens > 1)}, {layers} layers of {heads} heads"
    tables, pictures = [], []
    if isinstance(inspection, LanguageModelInspection):
        if inspection.mean_loss_nats is not None:
            description += f"; mean loss {inspection.mean_loss_nats:.3f} nats per token"
        tables, pictures = [temperature_table(inspection)], language_model_pictures(inspection)
    return render(
        "inspect.html", title=f"Inside {name}", name=name, prompt=prompt, description=description,
        data=script_data(inspection), tables=tables, pictures=pictures,
    )  # fmt: skip


def temperature_table(inspection: LanguageModelInspection) -> Table:
    """Return the most likely next tokens with their probabilities at each temperature, and the entropies."""
    rows = [
        [candidate.token, *(f"{row.probabilities[i]:.1%}" for row in inspection.temperatures)]
        for i, candidate in enumerate(inspection.candidates)
    ]
    rows.append(["entropy of all tokens, bits", *(f"{row.entropy_bits:.2f}" for row in inspection.temperatures)])
    columns = ("next token", *(f"at {row.temperature:g}" for row in inspection.temperatures))
    return Table(columns, rows, "The next token's distribution by temperature")


def language_model_pictures(inspection: LanguageModelInspection) -> list[Picture]:
    """Return pictures of the next token by temperature, and of each token's loss."""
    pictures = [picture("The next token by temperature", draw_temperatures, inspection)]
    if inspection.mean_loss_nats is not None:
        pictures.append(picture("Loss of each token", text.token_loss, inspection.tokens, inspection.loss_nats))
    return pictures


def script_data(inspection: Inspection) -> dict[str, Any]:
    """Return the data of templates/inside.js. The square root of each weight is a byte, which keeps small weights."""
    import matplotlib

    weights = inspection.attention.numpy()
    layers, heads = weights.shape[:2]
    roots = np.round(np.sqrt(weights) * 255).astype(np.uint8)  # [L, H, T, T]
    cividis = matplotlib.colormaps["cividis"](np.arange(256), bytes=True)[:, :3].tolist()
    data: dict[str, Any] = {
        "ids": inspection.ids,
        "tokens": inspection.tokens,
        "n_layer": layers,
        "n_head": heads,
        "attention": base64.b64encode(roots.tobytes()).decode(),
        "scale": ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in cividis],
    }
    if isinstance(inspection, LanguageModelInspection):
        data["loss_nats"] = inspection.loss_nats
        data["lens"] = [[[(c.token, c.probability) for c in position] for position in row] for row in inspection.lens]
    elif isinstance(inspection, ClassifierInspection):
        data |= {"labels": inspection.labels, "classes": inspection.classes}
    return data
