"""Train both fine-tunings with two seeds, in the working directory. Run by test_seeds.py, with Ray and without."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from gpt2core import environment

if __name__ != "__main__" and sys.argv[0] == "-c":  # of the test's own processes, and before PyTorch loads
    environment.prepare("portable")

from gpt2core import numerics
from gpt2core.params import load_params
from gpt2core.tasks import instructions
from gpt2core.tasks.labeled_texts import Message
from gpt2core.training import classify, instruct_seeds
from gpt2core.training.checkpoints import StageCheckpoints
from gpt2core.training.storage import LocalFolder
from tests.small import save_small_model

MESSAGES = [Message(label, f"the {label} of day {i}") for i in range(20) for label in ("lamp", "tower", "harbour")]
ENTRIES = [{"instruction": f"Say {i}.", "input": "", "output": f"the lamp {i}"} for i in range(24)]
CHANGES = {"epochs": 1, "batch_size": 4, "max_steps": None, "dropout": 0.1, "seeds": [1, 2]}


def main() -> None:
    """Print everything that both fine-tunings return and log; the models are in the working directory."""
    numerics.start("portable")
    root = Path()  # relative paths are the same in the results of both runs
    params = load_params(Path(__file__).parents[2] / "profiles/tiny.yaml")
    base = save_small_model(root / "base")
    checkpoints, others = (StageCheckpoints(LocalFolder(Path.cwd(), name)) for name in ("checkpoints", "others"))
    logged: list[object] = []

    def log(*values: object) -> None:
        logged.append(values)

    section = params.finetune_classify.model_copy(update=CHANGES)
    classified = classify.finetune_seeds(section, MESSAGES, base, root / "classifier", log, checkpoints)
    results = [[seed, splits, asdict(result)] for seed, splits, result in classified]
    changes = CHANGES | {"max_new_tokens": 8, "trainable": "lora", "checkpoint_steps": [2]}
    instruct = params.finetune_instruct.model_copy(update=changes)
    splits = instructions.split(ENTRIES, 0.2, 0.2, 1)
    dirs = (root / "instruct", root / "adapter")
    trained = instruct_seeds.finetune_seeds(instruct, [1, 2], base, splits, dirs, log, others)
    results += [[seed, asdict(result)] for seed, result in trained]
    print(json.dumps({"results": results, "logged": logged}))
