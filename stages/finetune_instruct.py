"""Stage finetune-instruct: a base model and instructions -> models/instruct and its responses to the test set
(`python -m stages.finetune_instruct`).

models/instruct-adapter is an output of every kind of fine-tuning, since DVC's outputs cannot depend on a param: with
`trainable: lora` it holds the adapter, else a line that says so.
"""

from __future__ import annotations

import math
from pathlib import Path

from gpt2core import config, files
from gpt2core.data import instructions
from gpt2core.prompts import PROMPTS, chat_template
from gpt2core.runtime import run_stage
from gpt2core.track import plots, stage_run
from gpt2core.train.instruct import COLUMNS, finetune_instruct
from gpt2core.train.states import stage_states
from gpt2core.weights.model_dir import save_model
from gpt2core.weights.peft_adapter import save_adapter

MODEL = Path("models/instruct")
ENTRIES = Path("data/raw/instructions.json")
CURVE = Path("metrics/plots/finetune_instruct.csv")
RESPONSES = Path("data/responses")


def main() -> None:
    params = config.load_params()
    section = params.finetune_instruct
    entries = instructions.read(ENTRIES)
    base = Path("models") / section.base
    decides = params.model_dump(include={"seed", "finetune_instruct"})
    splits = instructions.split(entries, section.val_fraction, section.test_fraction, params.seed)
    with (
        stage_states("finetune-instruct", decides, [ENTRIES, base]) as states,
        stage_run(
            "finetune-instruct", params, sections=("data", "finetune_instruct"), inputs=[ENTRIES, base],
            run_file=states.run_file
        ) as run,
    ):  # fmt: skip
        result = finetune_instruct(
            section, params.seed, base,
            splits.train, splits.val, splits.test, run.log_metrics, states.training("instruct"),
        )  # fmt: skip
        metrics = {
            "val_loss": round(result.curve[-1]["val_loss"], 6),
            "before_val_loss": round(result.before_val_loss, 6),
            "train_loss": round(result.curve[-1]["train_loss"], 6),
            "train_entries": len(splits.train),
            "val_entries": len(splits.val),
            "test_entries": len(splits.test),
            "truncated_entries": result.truncated,
            "test_loss": round(result.test_loss, 6),
            "before_test_loss": round(result.before_test_loss, 6),
            "test_perplexity": round(math.exp(result.test_loss), 6),
            "before_test_perplexity": round(math.exp(result.before_test_loss), 6),
            "trainable_parameters": result.trainable_parameters,
        }
        answered = [
            {**entry, "response": response, "base_response": base}
            for entry, response, base in zip(splits.test, result.responses, result.base_responses, strict=True)
        ]
        with files.atomic_dir(RESPONSES) as folder:
            files.write_json(folder / "test.json", answered)
            files.write_json(folder / "train.json", splits.train)
        template = chat_template(PROMPTS[section.prompt])
        save_model(MODEL, result.model, result.tokenizer, chat_template=template)
        save_adapter("models/instruct-adapter", result.adapter, base.as_posix())
        files.write_csv(CURVE, COLUMNS, result.curve)
        files.write_json("metrics/finetune_instruct.json", metrics)
        run.log_artifact(CURVE)
        run.log_artifact(RESPONSES / "test.json")
        run.log_figure(plots.loss_curve, CURVE, CURVE.with_name("instruct_loss.svg"))
        run.finish(metrics)
        run.log_model("instruct", MODEL, metrics)


if __name__ == "__main__":
    run_stage(main)
