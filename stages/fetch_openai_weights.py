"""Stage `fetch-openai-weights@SIZE`: the seven files of OpenAI's checkpoint of that size, to data/openai/SIZE."""

from __future__ import annotations

import sys
from pathlib import Path

from gpt2core.config.presets import PRESETS
from gpt2core.errors import UserError
from gpt2core.params import load_params
from gpt2core.runtime import stage_main
from gpt2core.sources import registry
from gpt2core.sources.download import fetch_all
from gpt2core.tracking import track_stage


def main() -> None:
    size = sys.argv[1] if len(sys.argv) == 2 else None
    if size not in PRESETS:
        raise UserError(f"usage: python -m stages.fetch_openai_weights SIZE, one of {', '.join(PRESETS)}")
    params = load_params()
    with track_stage(f"fetch-openai-weights@{size}", params) as run:
        out_dir = Path("data/openai") / size
        fetch_all(registry.find("openai", f"openai-{size}"), out_dir)
        run.finish({"bytes": sum(path.stat().st_size for path in out_dir.iterdir())})


if __name__ == "__main__":
    stage_main(main)
