"""Stage `download-data`: corpus, messages and instructions, from the registry or from data/own/, to data/raw."""

from __future__ import annotations

from pathlib import Path

from gpt2core.config import load_section
from gpt2core.config.data import Data
from gpt2core.config.tokenizer import Tokenizer
from gpt2core.config.top_level import TopLevel
from gpt2core.params import load_params
from gpt2core.runtime import stage_main
from gpt2core.sources.download_data import prepare_raw
from gpt2core.tracking import track_stage


def main() -> None:
    params = load_params()
    with track_stage("download-data", params) as run:
        kind, seed = load_section(Tokenizer, "tokenizer").kind, load_section(TopLevel).seed
        run.finish(prepare_raw(load_section(Data, "data"), kind, seed, Path("data/raw"), Path("data/own")))


if __name__ == "__main__":
    stage_main(main)
