"""Stage convert@SIZE: OpenAI's checkpoint -> models/openai/SIZE (`python -m stages.convert SIZE`)."""

from __future__ import annotations

import sys
from pathlib import Path

from gpt2core.checkpoint.model_card import CARD, ModelCard
from gpt2core.checkpoint.openai import convert
from gpt2core.config.presets import PRESETS
from gpt2core.errors import UserError
from gpt2core.params import load_params
from gpt2core.runtime import stage_main
from gpt2core.tracking import track_stage

OWN = ModelCard("A tiny GPT-2", "Written in OpenAI's format to try the pipeline without a network.", license="mit")


def of_openai(size: str) -> ModelCard:
    made = f"OpenAI's GPT-2 {size} (Radford et al. 2019), its weights unchanged. The license is OpenAI's modified MIT."
    return ModelCard(f"GPT-2 {size}", made, license="mit")


def main() -> None:
    size = sys.argv[1] if len(sys.argv) == 2 else None
    if size not in PRESETS:
        raise UserError(f"usage: python -m stages.convert SIZE, one of {', '.join(PRESETS)}")
    params = load_params()
    with track_stage(f"convert@{size}", params, sections=("openai",), inputs=[f"data/openai/{size}"]) as run:
        out = Path("models/openai") / size
        convert(Path("data/openai") / size, out, OWN if size == "tiny" else of_openai(size))
        run.describe(out / CARD)
        run.finish({"model_bytes": (out / "model.safetensors").stat().st_size})


if __name__ == "__main__":
    stage_main(main)
