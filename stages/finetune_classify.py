"""Stage finetune-classify: a base and labeled texts -> models/classifier (`python -m stages.finetune_classify`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2core import config, files, numerics, runtime
from gpt2core.checkpoint.model_card import CARD, ModelCard, write_model_card
from gpt2core.config.finetune_classify import FinetuneClassify
from gpt2core.config.top_level import TopLevel
from gpt2core.evaluation.seed_results import SeedResults, add_seed_column
from gpt2core.log import logger
from gpt2core.metric_files import write_metrics
from gpt2core.params import load_params
from gpt2core.runtime import stage_main
from gpt2core.tasks import labeled_texts
from gpt2core.tasks.labeled_texts import Message
from gpt2core.tracking import StageRun, track_stage
from gpt2core.training import distributed
from gpt2core.training.checkpoints import StageCheckpoints, stage_checkpoints
from gpt2core.training.classify import COLUMNS, finetune_seeds

MODEL = Path("models/classifier")
MESSAGES = Path("data/raw/classification.jsonl")
PLOTS = Path("metrics/plots")
CURVE = PLOTS / "finetune_classify.csv"


def main() -> None:
    params = load_params()
    mode, section = config.load_section(TopLevel).numerics, config.load_section(FinetuneClassify, "finetune_classify")
    runtime.start_launcher(section.launcher, "stages.finetune_classify")
    numerics.start(mode)
    messages = labeled_texts.read_table(MESSAGES)
    base = Path("models") / section.base
    with distributed.process_group():
        if runtime.rank():  # of several processes the first one saves checkpoints and writes the outputs
            deque(finetune_seeds(section, messages, base), maxlen=0)
            return
        if section.position != "last":
            logger.info(
                f"position: {section.position}: gpt2core reads models/classifier; transformers, which knows last, will "
                "not"
            )
        key_params = {"numerics": mode, "finetune_classify": section.model_dump()}
        with (
            stage_checkpoints("finetune-classify", key_params, [MESSAGES, base]) as checkpoints,
            track_stage(
                "finetune-classify", params, sections=("numerics", "data", "finetune_classify"),
                inputs=[MESSAGES, base], run_file=checkpoints.run_file,
            ) as run,
        ):  # fmt: skip
            _train_and_write(section, messages, base, checkpoints, run)


def _train_and_write(
    section: FinetuneClassify, messages: Sequence[Message], base: Path, checkpoints: StageCheckpoints, run: StageRun
) -> None:
    results = SeedResults(labeled_texts.classes(messages))
    curve: list[dict[str, Any]] = []
    kept_epochs: dict[str, int] = {}
    kept_model: dict[str, float] = {}
    for seed, splits, result in finetune_seeds(section, messages, base, MODEL, run.log_metrics, checkpoints):
        results.add(seed, splits.train, splits.test, result.before, result.after, result.probabilities)
        curve += add_seed_column(seed, result.curve)
        kept_epochs[str(seed)] = result.kept_epoch
        if seed == section.seeds[0]:  # whose model is the one kept
            kept_model = {name: round(value, 6) for name, value in result.accuracy.items()}
    metrics: dict[str, Any] = {
        **results.metrics(),
        **({"kept_epoch_by_seed": kept_epochs} if section.patience_evals else {}),
        **({"kept_model": kept_model} if kept_model else {}),
        "train_messages": len(splits.train),
        "val_messages": len(splits.val),
        "test_messages": len(splits.test),
        "truncated_messages": result.truncated,
        "trainable_parameters": result.trainable_parameters,
    }
    made = f"Fine-tuned from `{base}` to classify the texts of `data.classification`; the scores are of other texts."
    write_model_card(MODEL, ModelCard("A classifier of texts", made, metrics, section.model_dump()))
    files.write_csv(CURVE, ("seed", *COLUMNS), curve)
    results.write_tables(PLOTS)
    write_metrics("finetune_classify", metrics)
    run.log_artifact(CURVE)
    run.describe(MODEL / CARD)
    run.finish(metrics)
    run.log_model("classifier", MODEL, metrics)


if __name__ == "__main__":
    stage_main(main, is_distributed=True)
