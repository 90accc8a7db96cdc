"""The loss curves of four tiny fixed runs. `python -m tests.golden.curves` (or `make golden`) writes curves.csv anew.

They hold what no other test does: that a step of today does what a step of the day of curves.csv did. After an intended
change of data order, initial weights, optimizer or loss, look at what moved, write the file anew and say why in the
commit.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gpt2core import files
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.corpus.shards import Shard
from gpt2core.params import load_params
from gpt2core.sources.synthetic import generate_instructions, generate_messages, generate_tales
from gpt2core.tasks import instructions, labeled_texts
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training.classify import finetune_classify
from gpt2core.training.instruct import finetune_instruct
from gpt2core.training.pretrain import Corpus, pretrain

CURVES = Path(__file__).with_name("curves.csv")
STEPS = 30
TOLERANCE = 1e-4  # relative; another number of threads or instruction set changed 3e-7
RUNS: dict[str, dict[str, Any]] = {
    "pretrain_adamw": dict(optimizer="adamw", schedule="cosine", lr=3e-3, dropout=0.1, grad_accum_steps=2),
    "pretrain_muon": dict(optimizer="muon", schedule="wsd", lr=6e-3, muon_lr=0.02, dropout=0.0),
}
COLUMNS = ("step", *RUNS, "finetune_classify", "finetune_instruct")


def run_all() -> dict[str, list[float]]:
    """The training loss of each step of each run, in nats a target."""
    params = load_params("profiles/tiny.yaml")
    tales = generate_tales(seed=7, n_documents=60)
    tokenizer = train_bpe(tales, 300)
    ids = [i for tale in tales for i in (tokenizer.eot_id, *tokenizer.encode(tale))]
    shard = Shard(np.array(ids, np.uint16), tokenizer.vocab_size, len(tales), sum(map(len, tales)))
    curves: dict[str, list[float]] = {name: [] for name in COLUMNS[1:]}

    def follow(name: str) -> Any:
        return lambda metrics, step: curves[name].append(metrics["train_loss"]) if "train_loss" in metrics else None

    for name, recipe in RUNS.items():
        section = params.pretrain.model_copy(
            update=dict(
                n_layer=2, n_head=2, n_embd=32, n_positions=256, context=32, batch_size=4, max_steps=STEPS,
                warmup_steps=5, eval_interval_steps=STEPS, eval_batches=1, sample_tokens=4, dtype="float32",
                compile=False, **recipe,
            )
        )  # fmt: skip
        result = pretrain(section, 11, [Corpus(shard, shard)], tokenizer, on_metrics=follow(name))

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        save_model(base, result.model, tokenizer)
        shared = dict(batch_size=8, epochs=3, max_steps=STEPS, warmup_steps=5, lr=3e-3, dropout=0.1, dtype="float32")
        messages = generate_messages(seed=7)[:180]
        finetune_classify(
            params.finetune_classify.model_copy(update=dict(trainable="all", max_tokens=64, **shared)), 11, base,
            tuple(sorted({label for label, _ in messages})),
            labeled_texts.Splits(messages[:150], messages[150:165], messages[165:]),
            on_metrics=follow("finetune_classify"),
        )  # fmt: skip
        entries = [dict(instruction=e["instruction"][:8], input="", output=e["output"][:8]) for e in
                   generate_instructions(seed=7)[:140]]  # fmt: skip
        finetune_instruct(
            params.finetune_instruct.model_copy(update=dict(mask_prompt=False, max_new_tokens=2, **shared)), 11, base,
            instructions.Splits(entries[:130], entries[130:135], entries[135:]), on_metrics=follow("finetune_instruct"),
        )  # fmt: skip
    return curves


def recorded() -> dict[str, list[float]]:
    """What curves.csv holds."""
    with CURVES.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in COLUMNS[1:]}


if __name__ == "__main__":
    curves = run_all()
    files.write_csv(CURVES, COLUMNS, [{"step": i + 1, **{k: v[i] for k, v in curves.items()}} for i in range(STEPS)])
