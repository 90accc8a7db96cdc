"""Stage tokenize: corpus -> tokenizer and token shards (`python -m stages.tokenize`)."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "tokenize":  # `python stages/NAME.py` puts this folder before the standard library, which has this name
    sys.exit("error: run a stage as a module, in the project's folder: python -m stages.NAME (or: dvc repro NAME)")

from gpt2core import config, files
from gpt2core.config.tokenizer import Tokenizer as TokenizerParams
from gpt2core.config.top_level import TopLevel
from gpt2core.config.warm_start import WarmStart, base_dir
from gpt2core.corpus import lengths
from gpt2core.corpus.shards import open_shard
from gpt2core.corpus.tokenize import tokenize
from gpt2core.metric_files import write_metrics
from gpt2core.params import load_params
from gpt2core.runtime import stage_main
from gpt2core.tokenizer import load_tokenizer
from gpt2core.tracking import track_stage

TOKENS = Path("data/tokens")
PLOTS = Path("metrics/plots")


def main() -> None:
    params = load_params()
    sections = ("data", "tokenizer", "pretrain.base")
    with track_stage("tokenize", params, sections=sections, inputs=["data/raw/corpus"]) as run:
        section, seed = config.load_section(TokenizerParams, "tokenizer"), config.load_section(TopLevel).seed
        base = base_dir(config.load_section(WarmStart, "pretrain").base)
        metrics = tokenize(section, seed, Path("data/raw"), TOKENS, base_dir=base)
        write_metrics("tokenize", metrics)
        tokenizer, train = load_tokenizer(TOKENS), open_shard(TOKENS / "train.bin")
        of_tokens = lengths.token_lengths(tokenizer, train)
        of_documents = lengths.document_lengths(train, tokenizer.eot_id)
        files.write_csv(PLOTS / "token_lengths.csv", lengths.TOKEN_COLUMNS, of_tokens)
        files.write_csv(PLOTS / "document_lengths.csv", lengths.DOCUMENT_COLUMNS, of_documents)
        run.finish(metrics)


if __name__ == "__main__":
    stage_main(main)
