"""Stage `download-data`: corpus, messages and instructions, from the registry or from data/own/, to data/raw."""

from __future__ import annotations

from pathlib import Path

from gpt2core import config
from gpt2core.runtime import stage_main
from gpt2core.sources.download_data import prepare_raw
from gpt2core.tracking import track_stage


def main() -> None:
    params = config.load_params()
    with track_stage("download-data", params) as run:
        run.finish(prepare_raw(params.data, params.tokenizer.kind, params.seed, Path("data/raw"), Path("data/own")))


if __name__ == "__main__":
    stage_main(main)
