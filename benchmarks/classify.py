"""Time of fine-tuning the last block on the SMS Spam Collection, compared with the usual method.

    python -m benchmarks.classify MIRROR [--size 124M] [--usual-steps 20]

Both sides have the same rows, model, epochs (5), and batch size (8): the settings of profiles/gpt2-124m.yaml. The usual
method (chapter 6 of LLMs-from-scratch) pads every message to 120 tokens and runs all blocks in each step, frozen or
not. Every 50 steps, it computes the loss of 5 batches of training and of validation; after each epoch, their accuracy;
at the end, the accuracy of all rows. Some of its steps and forward passes are timed, half of them before gpt2core and
half after it, and its total is computed from these. gpt2core is timed completely: loading the base, tokenizing, the
frozen blocks, training, the evaluation of each epoch, tests before and after, and TF-IDF with logistic regression. The
weights are random, which does not change the time.

The CPU seconds are the sum over all threads. They are more reliable than the wall time if other work runs on the
machine; with one thread, they are the time on an idle core.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import machine
from benchmarks.machine import Seconds, timed
from gpt2core import runtime
from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.config.finetune_classify import FinetuneClassify
from gpt2core.config.presets import PRESETS
from gpt2core.evaluation.metrics.classification import tfidf_baseline
from gpt2core.inference.classify import encode
from gpt2core.params import load_params
from gpt2core.tasks import labeled_texts
from gpt2core.training.classify import finetune_classify, new_classifier
from gpt2core.training.optimizers import adamw

USUAL_TOKENS = 120
SEED = 123
LABELS = ("ham", "spam")


def main() -> None:
    parser = machine.new_parser(__doc__)
    parser.add_argument("mirror", type=Path, help="the folder that holds sms-spam-collection and gpt2-bpe")
    parser.add_argument("--size", choices=list(PRESETS), default="124M")
    parser.add_argument("--usual-steps", type=int, default=20)
    given = parser.parse_args()
    section = load_params(machine.ROOT / "profiles/gpt2-124m.yaml").finetune_classify
    messages = labeled_texts.read_table(given.mirror / "sms-spam-collection/SMSSpamCollection")
    splits = labeled_texts.split(messages, section.val_fraction, section.test_fraction, SEED)
    n_steps = section.epochs * -(-len(splits.train) // section.batch_size)
    print(machine.description())
    print(f"{given.size}, {len(splits.train)} messages to train on, {section.epochs} epochs, {n_steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        save_model(base, machine.random_model(given.size), machine.gpt2_tokenizer(given.mirror))
        half = max(1, given.usual_steps // 2)
        usual = [*usual_way(section, base, splits, half)]
        tuning, _ = timed(lambda: finetune_classify(section, SEED, base, LABELS, splits))
        baseline, _ = timed(lambda: tfidf_baseline(splits.train, splits.test, LABELS, SEED))
        ours = Seconds(tuning.wall + baseline.wall, tuning.cpu + baseline.cpu)
        usual += usual_way(section, base, splits, half)
    n_evaluated = evaluated_batches(section, splits, n_steps)
    print(f"the usual way: {n_steps} steps, {n_evaluated} batches evaluated")
    for name in Seconds._fields:
        step_s, forward_s = (statistics.median(getattr(row[i], name) for row in usual) for i in (0, 1))
        all_s, ours_s = step_s * n_steps + forward_s * n_evaluated, getattr(ours, name)
        print(
            f"{name:<4} {step_s:.3f} s a step, {forward_s:.3f} s a forward pass, in all {all_s:.0f} s; "
            f"gpt2core {ours_s:.0f} s: {all_s / ours_s:.1f} times as fast"
        )


def evaluated_batches(section: FinetuneClassify, splits: labeled_texts.Splits, n_steps: int) -> int:
    """Return the number of forward passes of the usual way's evaluations; see the module's first lines."""
    during = -(-n_steps // 50) * 2 * 5 + section.epochs * 2 * 5
    return during + sum(-(-len(split) // section.batch_size) for split in splits)


def usual_way(
    section: FinetuneClassify, base: Path, splits: labeled_texts.Splits, n_steps: int
) -> list[tuple[Seconds, Seconds]]:
    """Return the times of steps and forward passes of the usual way, after one of both that does not count."""
    gpt, tokenizer = load_language_model(base, device=runtime.device(), dropout=0.0)
    model = new_classifier(gpt, LABELS, "last_block", SEED).train()
    ids, _ = encode([text for _, text in splits.train], tokenizer, USUAL_TOKENS, None)
    labels = torch.tensor([LABELS.index(label) for label, _ in splits.train])
    optimizer = adamw(model.parameters(), lr=section.lr, weight_decay=section.weight_decay, beta2=section.beta2)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(SEED)).tolist()

    def train(padded: torch.Tensor, ends: torch.Tensor, targets: torch.Tensor) -> None:
        F.cross_entropy(model(padded, ends), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = []
    for step in range(n_steps + 1):
        rows = order[step * section.batch_size : (step + 1) * section.batch_size]
        padded = torch.tensor([[*ids[i], *[tokenizer.eot_id] * (USUAL_TOKENS - len(ids[i]))] for i in rows])
        ends = torch.full((len(rows),), USUAL_TOKENS)
        step_time, _ = timed(functools.partial(train, padded, ends, labels[rows]))
        with torch.no_grad():
            forward_time, _ = timed(functools.partial(model, padded, ends))
        times.append((step_time, forward_time))
    return times[1:]


if __name__ == "__main__":
    main()
