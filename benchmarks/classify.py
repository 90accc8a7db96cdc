"""Fine-tuning the last block on the SMS Spam Collection: the whole of ours beside the steps of the usual way.

    python -m benchmarks.classify MIRROR [--size 124M] [--usual-steps 20]

Same rows, same model, 5 epochs, batches of 8, the settings of profiles/gpt2-124m.yaml. The usual way pads every message
to 120 tokens and runs all blocks in each step, frozen or not (LLMs-from-scratch, chapter 6); some of its steps are
timed, half of them before ours and half after, and stand for all of them. Its evaluations are left out. Ours is
counted in full: loading the base, tokenising, the frozen blocks, training, evaluating each epoch, testing before and
after, and TF-IDF with logistic regression. The weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.machine import description
from gpt2core import config
from gpt2core.data import sms_spam
from gpt2core.evaluate.classification import tfidf_baseline
from gpt2core.model import GPT, GPTConfig
from gpt2core.tokenizer import Tokenizer
from gpt2core.train.batches import pad
from gpt2core.train.classify import encode, finetune_classify, load_base, new_classifier
from gpt2core.train.optim import adamw
from gpt2core.weights.model_dir import save_model

ROOT = Path(__file__).parents[1]
USUAL_TOKENS = 120
SEED = 123


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mirror", type=Path, help="the folder that holds sms-spam-collection and gpt2-bpe")
    parser.add_argument("--size", choices=list(config.PRESETS), default="124M")
    parser.add_argument("--usual-steps", type=int, default=20)
    given = parser.parse_args()
    section = config.load_params(ROOT / "profiles/gpt2-124m.yaml").finetune_classify
    messages = sms_spam.read_table(given.mirror / "sms-spam-collection/SMSSpamCollection")
    splits = sms_spam.split(messages, section.val_fraction, section.test_fraction, SEED)
    n_steps = section.epochs * -(-len(splits.train) // section.batch_size)
    print(description())
    print(f"{given.size}, {len(splits.train)} messages to train on, {section.epochs} epochs, {n_steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        bpe = given.mirror / "gpt2-bpe"
        tokenizer = Tokenizer.from_files(bpe / "encoder.json", bpe / "vocab.bpe")
        save_model(base, GPT(GPTConfig(tokenizer.vocab_size, **config.PRESETS[given.size])), tokenizer)
        half = max(1, given.usual_steps // 2)
        usual_s = usual_step_s(section, base, splits, half)
        start_s = time.perf_counter()
        finetune_classify(section, SEED, base, sms_spam.LABELS, *splits)
        tfidf_baseline(splits.train, splits.test, SEED)
        ours_s = time.perf_counter() - start_s
        usual_s += usual_step_s(section, base, splits, half)
    step_s = statistics.median(usual_s)
    spread = f"{min(usual_s):.3f} to {max(usual_s):.3f}"
    print(f"the usual way: {step_s:.3f} s a step ({spread}), all {step_s * n_steps:.0f} s")
    print(f"gpt2core: {ours_s:.0f} s in all, {step_s * n_steps / ours_s:.1f} times as fast")


def usual_step_s(section: config.FinetuneClassify, base: Path, splits: sms_spam.Splits, n_steps: int) -> list[float]:
    """Seconds of each of some steps of the usual way, after one that does not count."""
    gpt, tokenizer = load_base(base, dropout=0.0)
    model = new_classifier(gpt, sms_spam.LABELS, "last_block", SEED).train()
    ids, _ = encode([text for _, text in splits.train], tokenizer, USUAL_TOKENS, None)
    labels = torch.tensor([sms_spam.LABELS.index(label) for label, _ in splits.train])
    optimizer = adamw(model.parameters(), lr=section.lr, weight_decay=section.weight_decay, beta2=section.beta2)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(SEED)).tolist()
    times_s = []
    for step in range(n_steps + 1):
        start_s = time.perf_counter()
        rows = order[step * section.batch_size : (step + 1) * section.batch_size]
        padded = [[*ids[i], *[tokenizer.eot_id] * (USUAL_TOKENS - len(ids[i]))] for i in rows]
        logits = model(pad(padded, 0), torch.full((len(rows),), USUAL_TOKENS))
        F.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times_s.append(time.perf_counter() - start_s)
    return times_s[1:]


if __name__ == "__main__":
    main()
