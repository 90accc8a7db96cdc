"""Stage convert@SIZE: OpenAI's checkpoint -> models/openai/SIZE (`python -m stages.convert SIZE`)."""

from __future__ import annotations

import sys
from pathlib import Path

from gpt2core.weights.openai import convert

from gpt2core import config
from gpt2core.runtime import run_stage
from gpt2core.track import stage_run


def main() -> None:
    (size,) = sys.argv[1:]
    params = config.load_params()
    with stage_run(f"convert@{size}", params, sections=("openai",)) as run:
        out = Path("models/openai") / size
        convert(Path("data/openai") / size, out)
        run.finish({"model_bytes": (out / "model.safetensors").stat().st_size})


if __name__ == "__main__":
    run_stage(main)
