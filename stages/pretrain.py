"""Stage pretrain: token shards, and perhaps a base -> models/pretrained (`python -m stages.pretrain`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpt2core import config, files, numerics, runtime
from gpt2core.checkpoint.model_card import CARD, ModelCard, write_model_card
from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.config.data import Data
from gpt2core.config.pretrain import Pretrain
from gpt2core.config.top_level import TopLevel
from gpt2core.config.warm_start import base_dir
from gpt2core.corpus.shards import CONTINUED, open_shard
from gpt2core.evaluation.metrics.held_out import held_out_metrics
from gpt2core.metric_files import write_metrics
from gpt2core.params import load_params
from gpt2core.report.inspection_figures import log_inspection
from gpt2core.runtime import stage_main
from gpt2core.sources.synthetic import log2_probability
from gpt2core.tokenizer import load_tokenizer
from gpt2core.tracking import track_stage
from gpt2core.tracking.benchmarks import benchmark_logger
from gpt2core.tracking.throughput import with_throughput
from gpt2core.training.checkpoints import stage_checkpoints
from gpt2core.training.pretrain import COLUMNS, PHASES, Corpus, pretrain

TOKENS = Path("data/tokens")
MODEL = Path("models/pretrained")
CURVE = Path("metrics/plots/pretrain.csv")


def main() -> None:
    params = load_params()
    top, section = config.load_section(TopLevel), config.load_section(Pretrain, "pretrain")
    data = config.load_section(Data, "data")
    runtime.start_launcher(section.launcher, "stages.pretrain")
    numerics.start(top.numerics)
    tokenizer = load_tokenizer(TOKENS)
    base_path = base_dir(section.base)
    base = load_language_model(base_path, dropout=section.dropout)[0] if base_path else None
    corpora = [Corpus(open_shard(folder / "train.bin"), open_shard(folder / "val.bin")) for folder in _folders(section)]
    if runtime.rank():  # of several processes the first one saves checkpoints and writes the outputs
        pretrain(section, top.seed, corpora, tokenizer, base=base)
        return
    inputs = [TOKENS, base_path] if base_path else [TOKENS]
    key_params = {**top.model_dump(), "pretrain": section.model_dump()}
    with (
        stage_checkpoints("pretrain", key_params, inputs) as checkpoints,
        track_stage(
            "pretrain", params, sections=("numerics", "data", "tokenizer", "pretrain"),
            inputs=inputs, run_file=checkpoints.run_file,
        ) as run,
    ):  # fmt: skip
        phases = zip(PHASES, corpora, strict=False)
        saved = [corpus._replace(checkpoints=checkpoints.training(name)) for name, corpus in phases]
        on_model = benchmark_logger(params, tokenizer, run.log_metrics)
        result = pretrain(section, top.seed, saved, tokenizer, with_throughput(run.log_metrics), base, on_model)
        train, val, _ = corpora[-1]
        metrics = {
            **held_out_metrics(result.model, train, val, tokenizer, section.context, _source(data, section)),
            **result.metrics(section),
        }
        save_model(MODEL, result.model, tokenizer)
        made = _how_made(section, data)
        write_model_card(MODEL, ModelCard("A pretrained GPT-2", made, metrics, section.model_dump()))
        files.write_csv(CURVE, COLUMNS, result.curve)
        files.write_json("metrics/samples.json", result.samples)
        write_metrics("pretrain", metrics)
        run.log_artifact(CURVE)
        run.log_artifact("metrics/samples.json")
        log_inspection(run, result.model, tokenizer, val)
        run.describe(MODEL / CARD)
        run.finish(metrics)


def _folders(section: Pretrain) -> list[Path]:
    """Return the folders of the corpora that the model is trained on, in their order."""
    return [TOKENS] if section.continued_steps is None else [TOKENS, TOKENS / CONTINUED]


def _source(data: Data, section: Pretrain) -> Callable[[str], float] | None:
    """Return the probability of a text under the source of the corpus; it is known only where a grammar wrote it."""
    return log2_probability if data.corpus == "embedded" and section.continued_steps is None else None


def _how_made(section: Pretrain, data: Data) -> str:
    start = f"the weights of `{section.base}`" if section.has_base else "random weights"
    then = f", then on `{data.continued_corpus}`" if data.continued_corpus else ""
    return f"Pretrained from {start} on the corpus `{data.corpus}`{then}."


if __name__ == "__main__":
    stage_main(main, is_distributed=True)
