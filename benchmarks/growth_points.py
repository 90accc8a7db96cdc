"""The points of `benchmarks.growth` that need a model: `python -m benchmarks.growth_points FUNCTION N`.

Prints the seconds that count as JSON. Building the model, its first steps, and the inputs do not count.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable

import torch

from benchmarks import machine
from gpt2core import runtime
from gpt2core.inference import generate as decode
from gpt2core.inference import generate_batch
from gpt2core.model import GPT, GPTConfig
from gpt2core.model.inference import pack
from gpt2core.training.optimizers import adamw

# Blocks, heads, and channels of models by millions of parameters, with GPT-2's tokens from 30 million on.
SIZES = {
    1: (4, 4, 128, 1024), 3: (6, 6, 192, 2048), 10: (8, 6, 288, 8192), 30: (6, 6, 384, 50_257),
    124: (12, 12, 768, 50_257), 355: (24, 16, 1024, 50_257),
}  # fmt: skip
REPEATS = 5


def new_model(millions: int) -> GPT:
    """Return a model with random weights, in eval mode."""
    n_layer, n_head, n_embd, vocab_size = SIZES[millions]
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=vocab_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=1024)
    return GPT(config).eval()


def median_s(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median time of some calls after one that does not count."""
    work()
    return statistics.median(machine.timed(work)[0].wall for _ in range(repeats))


def train(millions: int, batch_size: int, context: int) -> float:
    """Return the seconds of a training step."""
    model = new_model(millions).train()
    optimizer = adamw(model.parameters(), lr=1e-4, weight_decay=0.1, beta2=0.95)
    ids = torch.randint(model.config.vocab_size, (batch_size, context + 1))

    def step() -> None:
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    return median_s(step)


def generate(n_prompts: int, n_tokens: int) -> float:
    """Return the milliseconds for one more token of each prompt, if each has `n_tokens` already."""
    new = 24
    model = pack(new_model(124), "float32")
    ids = torch.randint(50_000, (n_prompts, n_tokens))

    def seconds(count: int) -> float:
        return machine.timed(lambda: decode(model, ids, count, lookup=False))[0].wall

    seconds(2)
    return 1000 * statistics.median((seconds(new) - seconds(1)) / (new - 1) for _ in range(3))


def respond(n_entries: int) -> float:
    """Return the seconds for responses of 64 tokens to prompts of 40 to 120 tokens, in batches as in the stage."""
    model = new_model(1)
    lengths = torch.randint(40, 120, (n_entries,)).tolist()
    prompts = [torch.randint(1000, (length,)).tolist() for length in lengths]
    return machine.timed(lambda: generate_batch(model, prompts, 64, eos_id=None))[0].wall


FUNCTIONS: dict[str, Callable[[int], float]] = {
    "train_size": lambda n: train(n, 4, 256),
    "train_batch": lambda n: train(124, n, 256),
    "train_context": lambda n: train(124, 1, n),
    "generate_batch": lambda n: generate(n, 64),
    "generate_context": lambda n: generate(1, n),
    "respond_entries": respond,
}

if __name__ == "__main__":
    runtime.reuse_memory()
    print(json.dumps({"seconds": FUNCTIONS[sys.argv[1]](int(sys.argv[2]))}))
