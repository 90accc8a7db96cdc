"""Stage tokenize: corpus -> tokenizer and token shards (`python -m stages.tokenize`)."""

from __future__ import annotations

from pathlib import Path

from gpt2core import config, files
from gpt2core.data.tokenize import tokenize
from gpt2core.runtime import run_stage
from gpt2core.track import stage_run


def main() -> None:
    params = config.load_params()
    with stage_run("tokenize", params, sections=("data", "tokenizer")) as run:
        metrics = tokenize(params.tokenizer, params.seed, Path("data/raw"), Path("data/tokens"))
        files.write_json("metrics/tokenize.json", metrics)
        run.finish(metrics)


if __name__ == "__main__":
    run_stage(main)
