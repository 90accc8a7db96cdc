"""What `test_distributed_finetuning.py` runs under torchrun: both fine-tunings, by each way to divide them.

Every process writes what came out, and the first one also the weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from gpt2core.checkpoint.model_dir import save_model
from gpt2core.model import GPT, GPTConfig
from gpt2core.params import load_params
from gpt2core.prompts import alpaca
from gpt2core.sources.synthetic import generate_instructions
from gpt2core.tasks import instructions, labeled_texts
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training import distributed
from gpt2core.training.classify import finetune_classify
from gpt2core.training.instruct import finetune_instruct

TINY = Path(__file__).parents[2] / "profiles/tiny.yaml"
CLASSES = ("sport", "trade", "weather")
WORDS = {"sport": "goal", "trade": "price", "weather": "rain"}
TEXTS = [(label, f"the {WORDS[label]} of day {i}" + " and night" * (i % 4)) for i in range(15) for label in CLASSES]
ENTRIES = generate_instructions(0)
LORA = {"trainable": "lora", "lora_rank": 3, "lora_alpha": 5.0}
RECIPE = {"epochs": 2, "batch_size": 3, "grad_accum_steps": 2, "max_steps": None, "lr": 0.01, "warmup_steps": 2}
CASES: dict[str, dict[str, Any]] = {  # 31 training texts in steps of 6: the last has one, fewer than processes
    "classify": {"trainable": "all"},
    "classify-cached": {"trainable": "last_block"},
    "classify-lora": LORA,
    "instruct": {"trainable": "all"},
    "instruct-checkpointed": {"trainable": "blocks", "activation_checkpointing": True, "checkpoint_steps": [4]},
    "instruct-lora": LORA,
    "instruct-int8": LORA | {"lora_base_dtype": "int8"},
}
SHARDINGS = ("none", "full")
WAYS = [(case, sharding) for case in CASES for sharding in SHARDINGS if (case, sharding) != ("instruct-int8", "full")]


def write_base(folder: Path) -> None:
    torch.manual_seed(0)
    texts = [alpaca(entry["instruction"], entry["input"]) + entry["output"] for entry in ENTRIES[:60]]
    tokenizer = train_bpe([*texts, *(text for _, text in TEXTS)], 500)
    config = GPTConfig(tokenizer.vocab_size, n_positions=160, n_embd=18, n_layer=3, n_head=2, initializer_range=0.1)
    save_model(folder, GPT(config), tokenizer)


def run(base: Path, case: str, sharding: str) -> tuple[dict[str, Any], torch.nn.Module]:
    """Train; return the figures and the model."""
    changes = RECIPE | CASES[case] | {"sharding": sharding, "dropout": 0.0}
    if case.startswith("classify"):
        section = load_params(TINY).finetune_classify.model_copy(update=changes)
        splits = labeled_texts.Splits(TEXTS[:31], TEXTS[31:37], TEXTS[37:])
        result = finetune_classify(section, 1, base, CLASSES, splits, has_all_accuracies=True)
        found = {"curve": result.curve, "accuracy": result.accuracy, "probabilities": result.probabilities}
        return found, result.model
    section = load_params(TINY).finetune_instruct.model_copy(update=changes | {"max_new_tokens": 4})
    splits = instructions.Splits(ENTRIES[:31], ENTRIES[31:36], ENTRIES[36:39])
    tuned = finetune_instruct(section, 1, base, splits)
    evaluations = [[row.step, row.val_loss, row.test_loss, *row.nats] for row in tuned.checkpoints]
    n_adapted = len(tuned.adapter.tensors) if tuned.adapter else 0
    return {"curve": tuned.curve, "evaluations": evaluations, "n_adapted": n_adapted}, tuned.model


def main(base: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    with distributed.process_group():
        for case, sharding in WAYS:
            if sharding == "full" and distributed.world_size() == 1:
                continue
            name = f"{case}-{sharding}"
            found[name], model = run(base, case, sharding)
            if distributed.rank() == 0:
                state = {key: value.detach().contiguous() for key, value in model.named_parameters()}
                safetensors.torch.save_file(state, folder / f"{name}.safetensors")
        (folder / f"{distributed.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
