"""Stage `download-data`: corpus, messages and instructions, from the registry or from data/own/, to data/raw."""

from __future__ import annotations

from pathlib import Path

from gpt2core import config
from gpt2core.data.raw import prepare_raw
from gpt2core.runtime import run_stage
from gpt2core.track import stage_run


def main() -> None:
    params = config.load_params()
    with stage_run("download-data", params) as run:
        run.finish(prepare_raw(params.data, params.tokenizer.kind, params.seed, Path("data/raw"), Path("data/own")))


if __name__ == "__main__":
    run_stage(main)
