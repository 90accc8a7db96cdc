"""Train, evaluate and generate on a small scale with `numerics: portable`, and write every result to a folder.

`python tests/numerics/emulated.py FOLDER` computes everything. `--states STATES` saves the pretraining's state after
each step and resumes from it. `--stop-after N` stops it when N steps are saved, copies the states to the folder
`stopped` next to STATES, and resumes it.

test_emulated.py runs it under different CPU models and compares the files.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

os.environ["GPT2CORE_TRACKING"] = "off"
os.environ["GPT2CORE_SAVE_INTERVAL_S"] = "0"

from gpt2core import numerics
from gpt2core.params import Params, load_params

numerics.prepare("portable")

import numpy as np  # noqa: E402

from gpt2core import files  # noqa: E402
from gpt2core.checkpoint.model_dir import save_model  # noqa: E402
from gpt2core.corpus.shards import Shard  # noqa: E402
from gpt2core.evaluation.metrics.language_model import evaluate  # noqa: E402
from gpt2core.evaluation.metrics.nearest import nearest_outputs  # noqa: E402
from gpt2core.evaluation.seed_results import SeedResults  # noqa: E402
from gpt2core.inference import generate_batch  # noqa: E402
from gpt2core.inference.sampling import Sampling  # noqa: E402
from gpt2core.log import log_to_stderr  # noqa: E402
from gpt2core.sources.synthetic import generate_instructions, generate_messages, generate_tales  # noqa: E402
from gpt2core.tasks import instructions, labeled_texts  # noqa: E402
from gpt2core.tokenizer import Tokenizer  # noqa: E402
from gpt2core.tokenizer.train import train_bpe  # noqa: E402
from gpt2core.training.checkpoints import CheckpointManager, fingerprint  # noqa: E402
from gpt2core.training.classify import finetune_classify  # noqa: E402
from gpt2core.training.instruct import finetune_instruct  # noqa: E402
from gpt2core.training.pretrain import Corpus, Pretrained, pretrain  # noqa: E402
from gpt2core.training.storage import LocalFolder  # noqa: E402

ROOT = Path(__file__).parents[2]
STEPS = 4  # of each training
SEED = 11
EVERY_STEP = dict(max_steps=STEPS, warmup_steps=1, dtype="float32")


class Stopped(Exception):
    """The training is to end here."""


def pretrained(
    params: Params,
    shards: tuple[Shard, Shard],
    tokenizer: Tokenizer,
    states: CheckpointManager | None,
    stop_after: int | None,
) -> Pretrained:
    """Pretrain one layer with Muon, on batches that two threads share."""

    def on_metrics(metrics: dict[str, float], step: int) -> None:
        if stop_after is not None and step > stop_after:  # called before this step is saved
            raise Stopped

    section = params.pretrain.model_copy(
        update=dict(
            n_layer=1, n_head=2, n_embd=32, n_positions=256, context=128, batch_size=8, grad_accum_steps=2,
            optimizer="muon", schedule="wsd", eval_interval_steps=2, eval_batches=1, sample_tokens=8, **EVERY_STEP,
        )
    )  # fmt: skip
    return pretrain(section, SEED, [Corpus(*shards, states)], tokenizer, on_metrics)


def classify(params: Params, base: Path, out: Path) -> None:
    """Fine-tune a classifier with dropout, and score it and the baselines of scikit-learn."""
    messages = generate_messages(seed=7)[:120]
    labels = tuple(sorted({label for label, _ in messages}))
    train, val, test = messages[:80], messages[80:90], messages[90:]
    section = params.finetune_classify.model_copy(
        update=dict(trainable="all", max_tokens=32, batch_size=16, epochs=2, dropout=0.1, **EVERY_STEP)
    )
    result = finetune_classify(section, SEED, base, labels, labeled_texts.Splits(train, val, test))
    save_model(out / "classifier", result.model, result.tokenizer)
    scores = SeedResults(labels)
    scores.add(SEED, train, test, result.before, result.after, result.probabilities)
    scores.write_tables(out / "classify")
    files.write_json(
        out / "classify.json",
        {"metrics": scores.metrics(), "curve": result.curve, "probabilities": result.probabilities},
    )


def instruct(params: Params, base: Path, out: Path) -> None:
    """Fine-tune on instructions, on batches that two threads share, and answer by the nearest entry."""
    entries = [
        dict(instruction=entry["instruction"][:8], input="", output=entry["output"][:8])
        for entry in generate_instructions(seed=7)[:60]
    ]
    train, val, test = entries[:48], entries[48:52], entries[52:]
    section = params.finetune_instruct.model_copy(
        update=dict(trainable="all", batch_size=12, epochs=1, dropout=0.0, max_new_tokens=3, **EVERY_STEP)
    )
    result = finetune_instruct(section, SEED, base, instructions.Splits(train, val, test))
    save_model(out / "instruct", result.model, result.tokenizer)
    files.write_json(
        out / "instruct.json",
        {
            "curve": result.curve,
            "checkpoints": [checkpoint._asdict() for checkpoint in result.checkpoints],
            "nearest": nearest_outputs(train, test),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compute small results with `numerics: portable`.")
    parser.add_argument("folder", type=Path, help="where to write the results")
    parser.add_argument("--states", type=Path, help="folder of the pretraining's states")
    parser.add_argument("--stop-after", type=int, help="stop when this many steps of the pretraining are saved")
    arguments = parser.parse_args()
    log_to_stderr()
    numerics.start("portable")
    out: Path = arguments.folder
    out.mkdir(parents=True, exist_ok=True)
    params = load_params(ROOT / "profiles" / "tiny.yaml")
    files.write_json(out / "fingerprint.json", fingerprint("pretrain", {"numerics": "portable"}, []))

    tales = generate_tales(seed=7, n_documents=60)
    tokenizer = train_bpe(tales, 300)
    documents = [np.array([tokenizer.eot_id, *tokenizer.encode(tale)], np.uint16) for tale in tales]
    shards = tuple(
        Shard(np.concatenate(documents[part]), tokenizer.vocab_size, len(tales[part]), sum(map(len, tales[part])))
        for part in (slice(8, None), slice(0, 8))
    )
    states = CheckpointManager(LocalFolder(arguments.states)) if arguments.states else None
    try:
        result = pretrained(params, shards, tokenizer, states, arguments.stop_after)
    except Stopped:
        shutil.copytree(arguments.states, arguments.states.with_name("stopped"))
        result = pretrained(params, shards, tokenizer, states, None)
    base = out / "pretrained"
    save_model(base, result.model, tokenizer)
    files.write_json(out / "pretrain.json", {"curve": result.curve, "samples": result.samples})
    small = Shard(shards[1].tokens[:600], tokenizer.vocab_size, 1, 1500)
    files.write_json(out / "evaluate.json", evaluate(result.model, small, tokenizer.eot_id, 128))
    prompts = [tokenizer.encode(text) for text in ("Once", "The old man", "A")]
    drawn = Sampling(temperature=0.8, top_p=0.9)
    texts = {
        name: [
            tokenizer.decode(ids)
            for ids in generate_batch(result.model, prompts, 12, eos_id=tokenizer.eot_id, sampling=sampling, seed=3)
        ]
        for name, sampling in (("greedy", Sampling()), ("sampled", drawn))
    }
    files.write_json(out / "texts.json", texts)
    classify(params, base, out)
    instruct(params, base, out)


if __name__ == "__main__":
    main()
