"""Instructions as training examples: only the response has targets, and rows of unequal length share a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2core import prompts
from gpt2core.learn.dataset import Encoder

IGNORE = -100  # cross_entropy skips such targets
Example = tuple[list[int], list[int]]


def instruction_example(entry: Mapping[str, str], tokenizer: Encoder, eot_id: int) -> Example:
    """Return ids of prompt and response, and for each position the next id, or -100 within the prompt."""
    prompt = tokenizer.encode(prompts.alpaca(entry["instruction"], entry["input"]))
    ids = [*prompt, *tokenizer.encode(entry["output"]), eot_id]
    targets = [IGNORE] * (len(prompt) - 1) + ids[len(prompt) :]
    return ids[:-1], targets


def instruction_batch(examples: Sequence[Example], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad examples on the right to the longest: ids [B, T] and targets [B, T], -100 over the padding."""
    longest = max(len(ids) for ids, _ in examples)
    inputs = [ids + [pad_id] * (longest - len(ids)) for ids, _ in examples]
    targets = [next_ids + [IGNORE] * (longest - len(next_ids)) for _, next_ids in examples]
    return torch.tensor(inputs), torch.tensor(targets)
