"""Stage finetune-instruct: a base and instructions -> models/instruct (`python -m stages.finetune_instruct`).

It also writes the responses to the test set. With several seeds or checkpoints, data/responses/checkpoints.json has the
evaluation of each, for the table of llm-judge-eval. models/instruct-adapter is always an output, since DVC's outputs
cannot depend on a param: with `trainable: lora` it has the adapter, else a line that says so.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from gpt2core import config, files, numerics, runtime
from gpt2core.checkpoint.model_card import CARD, ModelCard, write_model_card
from gpt2core.config.finetune_instruct import FinetuneInstruct
from gpt2core.config.top_level import TopLevel
from gpt2core.metric_files import write_metrics
from gpt2core.params import load_params
from gpt2core.runtime import stage_main
from gpt2core.tasks import instructions
from gpt2core.tracking import track_stage
from gpt2core.training import distributed
from gpt2core.training.checkpoints import stage_checkpoints
from gpt2core.training.instruct import COLUMNS
from gpt2core.training.instruct_seeds import InstructSeeds, finetune_seeds

MODEL, ADAPTER = Path("models/instruct"), Path("models/instruct-adapter")
ENTRIES = Path("data/raw/instructions.json")
CURVE = Path("metrics/plots/finetune_instruct.csv")
RESPONSES = Path("data/responses")


def main() -> None:
    params = load_params()
    top, section = config.load_section(TopLevel), config.load_section(FinetuneInstruct, "finetune_instruct")
    runtime.start_launcher(section.launcher, "stages.finetune_instruct")
    numerics.start(top.numerics)
    entries = instructions.read(ENTRIES)
    base = Path("models") / section.base
    seeds = section.seeds or [top.seed]
    if section.split == "ordered":
        splits = instructions.split_in_order(entries, section.val_fraction, section.test_fraction)
    else:
        splits = instructions.split(entries, section.val_fraction, section.test_fraction, top.seed)
    with distributed.process_group():
        if runtime.rank():  # of several processes the first one saves checkpoints and writes the outputs
            deque(finetune_seeds(section, seeds, base, splits), maxlen=0)
            return
        key_params = {**top.model_dump(), "finetune_instruct": section.model_dump()}
        with (
            stage_checkpoints("finetune-instruct", key_params, [ENTRIES, base]) as checkpoints,
            track_stage(
                "finetune-instruct", params, sections=("numerics", "data", "finetune_instruct"),
                inputs=[ENTRIES, base], run_file=checkpoints.run_file,
            ) as run,
        ):  # fmt: skip
            results = InstructSeeds(section, splits)
            for seed, result in finetune_seeds(
                section, seeds, base, splits, (MODEL, ADAPTER), run.log_metrics, checkpoints
            ):
                results.add(seed, result)
                if seed == seeds[0]:
                    files.write_csv(CURVE, COLUMNS, result.curve)
            made = f"Fine-tuned from `{base}` on the entries of `data.instructions`; the losses are of other entries."
            card = ModelCard("An instruction-tuned GPT-2", made, results.metrics, section.model_dump())
            write_model_card(MODEL, card)
            results.write(RESPONSES)
            write_metrics("finetune_instruct", results.metrics)
            run.log_artifact(CURVE)
            run.log_artifact(RESPONSES / "test.json")
            run.describe(MODEL / CARD)
            run.finish(results.metrics)
            run.log_model("instruct", MODEL, results.metrics)


if __name__ == "__main__":
    stage_main(main, is_distributed=True)
