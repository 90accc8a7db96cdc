"""Stage finetune-instruct: a base model and instructions -> models/instruct and its responses to the test set
(`python -m stages.finetune_instruct`).

With several seeds or checkpoints, data/responses/checkpoints.json has what each of them makes of the test set, for the
table of llm-judge-eval. models/instruct-adapter is an output of every kind of fine-tuning, since DVC's outputs cannot
depend on a param: with `trainable: lora` it holds the adapter, else a line that says so.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gpt2core import config, files
from gpt2core.data import instructions
from gpt2core.prompts import PROMPTS, chat_template
from gpt2core.runtime import run_stage
from gpt2core.track import plots, stage_run
from gpt2core.train.instruct import COLUMNS, Checkpoint, Instructed, finetune_instruct
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
        before: Checkpoint | None = None
        metrics: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []  # of the table
        for seed in section.seeds or [params.seed]:
            on_metrics = _silent if before else run.log_metrics  # one curve a run
            result = finetune_instruct(
                section, seed, base,
                splits.train, splits.val, splits.test, on_metrics, states.training(f"seed-{seed}"), before,
            )  # fmt: skip
            if before is None:  # the first seed's model is the one kept, and responses and figures are its own
                before = result.before
                rows.append({"seed": None, **before._asdict()})
                template = chat_template(PROMPTS[section.prompt])
                save_model(MODEL, result.model, result.tokenizer, chat_template=template)
                save_adapter("models/instruct-adapter", result.adapter, base.as_posix())
                files.write_csv(CURVE, COLUMNS, result.curve)
                metrics = _metrics(result, splits)
                answered = [
                    {**entry, "response": response, "base_response": base_response}
                    for entry, response, base_response in zip(
                        splits.test, result.after.responses, before.responses, strict=True
                    )
                ]
            rows += [{"seed": seed, **checkpoint._asdict()} for checkpoint in result.checkpoints[1:]]
            if section.seeds:
                for name in ("val_loss", "test_loss"):
                    metrics.setdefault(f"{name}_by_seed", {})[str(seed)] = round(getattr(result.after, name), 6)
            test_tokens = result.test_tokens
            del result  # its model makes room for the next one's
        with files.atomic_dir(RESPONSES) as folder:
            files.write_json(folder / "test.json", answered)
            files.write_json(folder / "train.json", splits.train)
            if section.is_tabled:
                files.write_json(folder / "checkpoints.json", {"test_tokens": test_tokens, "checkpoints": rows})
        files.write_json("metrics/finetune_instruct.json", metrics)
        run.log_artifact(CURVE)
        run.log_artifact(RESPONSES / "test.json")
        run.log_figure(plots.loss_curve, CURVE, CURVE.with_name("instruct_loss.svg"))
        run.finish(metrics)
        run.log_model("instruct", MODEL, metrics)


def _metrics(result: Instructed, splits: instructions.Splits) -> dict[str, Any]:
    before, after = result.before, result.after
    return {
        "val_loss": round(after.val_loss, 6),
        "before_val_loss": round(before.val_loss, 6),
        "train_loss": round(result.curve[-1]["train_loss"], 6),
        "train_entries": len(splits.train),
        "val_entries": len(splits.val),
        "test_entries": len(splits.test),
        "truncated_entries": result.truncated,
        "test_loss": round(after.test_loss, 6),
        "before_test_loss": round(before.test_loss, 6),
        "test_perplexity": round(math.exp(after.test_loss), 6),
        "before_test_perplexity": round(math.exp(before.test_loss), 6),
        "trainable_parameters": result.trainable_parameters,
    }


def _silent(metrics: dict[str, float], step: int) -> None:
    """Curves of further seeds are not kept."""


if __name__ == "__main__":
    run_stage(main)
